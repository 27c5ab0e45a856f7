"""What the engine core needs of the world below it: a way to run plans. Implementations live in `remuda.executor`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from remuda.protocol.step import MemoryReport, PhaseProgress, StepPlan, StepResult


@dataclass(frozen=True)
class StartReport:
    kv_pages: int  # agreed by all ranks; page 0 is the null page
    memory: list[MemoryReport]  # one per rank, in rank order


class Executor(Protocol):
    """Runs step plans on the ranks of one replica, in order."""

    def start(self, progress: Callable[[PhaseProgress], None]) -> StartReport:
        """Bring every rank through the start-up phases; raises RemudaError naming node, rank and phase."""
        ...

    def submit(self, plan: StepPlan) -> None:
        """Hand one plan to every rank; returns before it has run (an in-process executor may run it at once)."""
        ...

    def poll(self) -> list[StepResult]:
        """Results that have arrived, in step order, without blocking. Raises ReplicaDied if a rank is gone."""
        ...

    def filenos(self) -> list[int]:
        """Descriptors that turn readable when poll() may have something (empty: results are ready after submit)."""
        ...

    def shutdown(self) -> None:
        """End every rank; returns when no process is left. Idempotent."""
        ...
