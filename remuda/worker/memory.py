"""What this rank may give to the KV cache."""

from __future__ import annotations

import torch

from remuda.config.engine import CacheConfig
from remuda.planner.host import free_host_bytes


def kv_bytes_available(cache: CacheConfig, ranks_on_node: int, device: torch.device) -> int:
    """Bytes for KV pages on this rank, once every rank of the node holds its weights."""
    if cache.kv_cache_memory_bytes is not None:
        return cache.kv_cache_memory_bytes
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return max(0, int(free - total * (1.0 - cache.memory_utilization)))
    return int(free_host_bytes() * cache.memory_utilization) // ranks_on_node
