"""When a rank's device worked on which step, for `--trace-dir`: from its own events, so that nothing waits for it.

A step begins once its inputs are there (rows of the stage before, tokens of an earlier step), so waiting for other
stages is no work; waiting for TP ranks of the same stage, inside collectives, counts as work.
"""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import Protocol

from remuda.parallel.topology import Topology
from remuda.worker.cuda.device import Device, Instant


class Timeline(Protocol):
    def begin(self) -> None:
        """What the device is given from here on is work of the next step; a second call before `end` replaces it."""
        ...

    def end(self, step: int, rows: int, tokens: int) -> None:
        """All work of the step has been given to the device."""
        ...

    def settle(self) -> None:
        """The oldest step that has not been settled has ended."""
        ...

    def write(self) -> None: ...


class NoTimeline:
    """Nobody asked for one."""

    def begin(self) -> None:
        return

    def end(self, step: int, rows: int, tokens: int) -> None:
        return

    def settle(self) -> None:
        return

    def write(self) -> None:
        return


class DeviceTimeline:
    """Written as a JSON list of {step, rows, tokens, begin_s, end_s}, in seconds of the host's monotonic clock."""

    def __init__(self, device: Device, path: Path, topology: Topology) -> None:
        self._device = device
        self._path = path
        self._stage, self._tp_rank = topology.stage, topology.tp_rank
        self._open: deque[tuple[dict[str, float], Instant, Instant]] = deque()
        self._steps: list[dict[str, float]] = []
        self._began = device.instant()
        path.parent.mkdir(parents=True, exist_ok=True)

    def begin(self) -> None:
        self._began = self._device.instant()

    def end(self, step: int, rows: int, tokens: int) -> None:
        about: dict[str, float] = {"step": step, "rows": rows, "tokens": tokens}
        self._open.append((about, self._began, self._device.instant()))

    def settle(self) -> None:
        about, began, ended = self._open.popleft()
        self._steps.append(about | {"begin_s": began.clock_s(), "end_s": ended.clock_s()})

    def write(self) -> None:
        rank = {"stage": self._stage, "tp_rank": self._tp_rank, "steps": self._steps}
        self._path.write_text(json.dumps(rank))


def timeline_of(trace_dir: str, device: Device, topology: Topology) -> Timeline:
    """What --trace-dir asks for: a file for every rank."""
    if not trace_dir:
        return NoTimeline()
    return DeviceTimeline(device, Path(trace_dir) / f"rank-{topology.rank}.json", topology)
