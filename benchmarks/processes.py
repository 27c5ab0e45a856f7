"""Processor time and memory of a process tree, from /proc. Linux only."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """`pid` and every process below it."""
    found = [pid]
    for task in _glob(f"/proc/{pid}/task", "*/children"):
        for child in _read(task).split():
            found += tree(int(child))
    return found


def title(pid: int) -> str:
    return _read(Path(f"/proc/{pid}/cmdline")).replace("\0", " ").strip()


def cpu_s(pid: int) -> float:
    """User and system seconds of one process so far."""
    fields = _read(Path(f"/proc/{pid}/stat")).rsplit(")", 1)[-1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S if len(fields) > 12 else 0.0


def cpu_by_title(root: int) -> dict[str, float]:
    """CPU seconds of every process of the tree, by title (equal titles are added)."""
    seconds: dict[str, float] = {}
    for pid in tree(root):
        seconds[title(pid)] = seconds.get(title(pid), 0.0) + cpu_s(pid)
    return seconds


def memory_mib(root: int) -> dict[str, float]:
    """Sums over the tree: resident (shared pages counted for each process) and proportional (counted once)."""
    pids = tree(root)
    rss = sum(_field_kib(Path(f"/proc/{pid}/status"), "VmRSS") for pid in pids)
    pss = sum(_field_kib(Path(f"/proc/{pid}/smaps_rollup"), "Pss") for pid in pids)
    return {"rss_mib": round(rss / 1024, 1), "pss_mib": round(pss / 1024, 1)}


def machine_busy_s() -> float:
    """CPU seconds that all processes of the machine have used (steal included)."""
    user, nice, system, _, _, irq, softirq, steal = map(int, _read(Path("/proc/stat")).split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_S


def median(values: list[float]) -> float:
    return round(statistics.median(values), 3)


def _field_kib(path: Path, key: str) -> int:
    for line in _read(path).splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    return 0


def _read(path: Path) -> str:
    """ "" for a process that has ended meanwhile."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def _glob(folder: str, pattern: str) -> list[Path]:
    try:
        return list(Path(folder).glob(pattern))
    except (FileNotFoundError, ProcessLookupError):
        return []
