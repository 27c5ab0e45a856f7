"""Memory of this machine."""

from __future__ import annotations

from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def free_host_bytes(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = _CGROUP) -> int:
    """Memory that the kernel would hand out without swapping, within the limit of this control group (version 2)."""
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = _read_bytes(cgroup / "memory.max"), _read_bytes(cgroup / "memory.current")
    if limit is not None and used is not None:
        free = min(free, max(0, limit - used))
    return free


def kv_bytes_of_rank(free_bytes: float, memory_utilization: float, ranks_on_node: int) -> int:
    """What a rank on a host may give to its KV pages: an equal share of what the weights leave free."""
    return max(0, int(free_bytes * memory_utilization)) // ranks_on_node


def _read_bytes(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return None
