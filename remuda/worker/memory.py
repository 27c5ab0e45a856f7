"""What this rank may give to the KV cache."""

from __future__ import annotations

from pathlib import Path

import torch

from remuda.config.engine import CacheConfig

_CGROUP = Path("/sys/fs/cgroup")


def kv_bytes_available(cache: CacheConfig, ranks_on_node: int, device: torch.device) -> int:
    """Bytes for KV pages on this rank, once every rank of the node holds its weights."""
    if cache.kv_cache_memory_bytes is not None:
        return cache.kv_cache_memory_bytes
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return max(0, int(free - total * (1.0 - cache.memory_utilization)))
    return int(free_host_bytes() * cache.memory_utilization) // ranks_on_node


def free_host_bytes(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = _CGROUP) -> int:
    """Memory that the kernel would hand out without swapping, within the limit of this control group (version 2)."""
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = _read_bytes(cgroup / "memory.max"), _read_bytes(cgroup / "memory.current")
    if limit is not None and used is not None:
        free = min(free, max(0, limit - used))
    return free


def _read_bytes(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return None
