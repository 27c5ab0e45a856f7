"""Attention over paged keys and values."""

from remuda.kernels.attention.naive import paged_attention

__all__ = ["paged_attention"]
