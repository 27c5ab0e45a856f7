"""Tiny random checkpoints of real architectures, in the published layouts: for tests, and for a first try."""

from remuda.tiny.maker import make_tiny

__all__ = ["make_tiny"]
