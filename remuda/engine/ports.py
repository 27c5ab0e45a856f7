"""What the engine core needs of the world below it: a way to run plans. Implementations live in `remuda.executor`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from remuda.protocol.progress import PhaseProgress
from remuda.protocol.step import MemoryReport, StepPlan, StepResult


@dataclass(frozen=True)
class StartReport:
    kv_pages: int  # agreed by all ranks; page 0 is the null page
    memory: list[MemoryReport]  # one per rank, in rank order
    plans_in_flight: int | None = None  # that keep the ranks busy; None: one more than there are stages


class Executor(Protocol):
    """Runs step plans on the ranks of one replica, in order."""

    def start(self, progress: Callable[[PhaseProgress], None]) -> StartReport:
        """Bring every rank through the start-up phases; raises RemudaError naming node, rank and phase."""
        ...

    def submit(self, plan: StepPlan) -> None:
        """Hand one plan to every rank; returns before it has run (an in-process executor may run it at once)."""
        ...

    def poll(self, block: bool = False) -> list[StepResult]:
        """Results that have arrived, in step order. With `block`, an executor without descriptors waits for the oldest
        plan in flight; others never wait. Raises ReplicaDied if a rank is gone."""
        ...

    def filenos(self) -> list[int]:
        """Descriptors that turn readable when poll() may have something (none: only poll() itself can tell)."""
        ...

    def shutdown(self) -> None:
        """End every rank; returns when no process is left. Idempotent."""
        ...
