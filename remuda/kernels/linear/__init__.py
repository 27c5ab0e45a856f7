"""Linear layers with a packed weight."""

from remuda.kernels.linear.naive import PackedLinear

__all__ = ["PackedLinear"]
