"""The host's memory: what a rank may give to its KV cache, and its pages."""

from __future__ import annotations

import math

import torch

from remuda.kernels.native.memory import huge_pages
from remuda.planner.host import free_host_bytes, kv_bytes_of_rank


def kv_bytes_of_host(memory_utilization: float, ranks_on_node: int) -> int:
    """A share of what is free now."""
    return kv_bytes_of_rank(free_host_bytes(), memory_utilization, ranks_on_node)


def pages_on_host(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros, straight from the operating system: resident only where a sequence wrote."""
    return huge_pages(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)
