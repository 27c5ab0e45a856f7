"""Processes as a test sees them from outside: who is below whom, who is still alive."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Proc:
    """A process as it was seen: the start time tells it from a later one with the same id."""

    pid: int
    started: str
    title: str = field(compare=False)

    def alive(self) -> bool:
        fields = _stat(self.pid)
        return fields is not None and fields[0] != "Z" and fields[19] == self.started

    def kill(self) -> None:
        if self.alive():
            os.kill(self.pid, signal.SIGKILL)


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on, or None."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def descendants(pid: int) -> list[Proc]:
    """Live processes below `pid`."""
    found: list[Proc] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in map(int, task.read_text().split()):
                fields = _stat(child)
                title = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                found += [Proc(child, fields[19], title)] if fields else []
                found += descendants(child)
    return found


def wait_until(condition: Callable[[], object], limit_s: float, what: str) -> float:
    """Poll until true; returns the seconds it took, fails after `limit_s`."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < limit_s, f"{what}: not within {limit_s} s"
        time.sleep(0.02)
    return time.monotonic() - start


def wait_until_gone(family: Iterable[Proc], limit_s: float = 5.0) -> None:
    wait_until(lambda: not any(proc.alive() for proc in family), limit_s, "processes left behind")


def titled(title: str) -> Proc:
    """The one process with that title below this one."""
    (found,) = [proc for proc in descendants(os.getpid()) if proc.title == title]
    return found
