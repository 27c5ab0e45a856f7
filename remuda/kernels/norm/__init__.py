"""RMS norm, alone or after a residual addition."""

from remuda.kernels.norm.naive import add_rms_norm, rms_norm

__all__ = ["add_rms_norm", "rms_norm"]
