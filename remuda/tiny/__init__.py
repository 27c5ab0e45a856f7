"""Tiny random checkpoints of real architectures, in the published layouts: for tests, and for a first try."""

from remuda.tiny.maker import KINDS, make_tiny

__all__ = ["KINDS", "make_tiny"]
