"""Gated activations."""

from remuda.kernels.activation.naive import silu_mul

__all__ = ["silu_mul"]
