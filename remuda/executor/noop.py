"""An executor without ranks: every row gets a token at once. It times the control plane alone."""

from __future__ import annotations

from collections.abc import Callable

from remuda.config.engine import EngineConfig
from remuda.engine.ports import StartReport
from remuda.executor.sizing import most_useful_pages
from remuda.protocol.progress import PhaseProgress
from remuda.protocol.step import MemoryReport, StepPlan, StepResult


class NoopExecutor:
    """Follows the contract of `protocol/step.py` with two counters per slot. Tokens never end a sequence."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        slots = config.scheduler.max_num_seqs
        self._known = [0] * slots
        self._computed = [0] * slots
        self._token = next(token for token in range(config.model.vocab_size) if token not in config.model.eos_token_ids)
        self._results: list[StepResult] = []

    def start(self, progress: Callable[[PhaseProgress], None]) -> StartReport:
        config = self._config
        pages = config.cache.num_pages_override or most_useful_pages(config)
        ranks = range(config.parallel.world_size)
        return StartReport(pages, [MemoryReport(rank, 0, 0, 0, 1, [], []) for rank in ranks], plans_in_flight=1)

    def submit(self, plan: StepPlan) -> None:
        known, computed = self._known, self._computed
        for sequence in plan.new:
            known[sequence.slot] = len(sequence.token_ids)
            computed[sequence.slot] = sequence.computed
        sampling = 0
        for slot, count in zip(plan.slots, plan.counts, strict=True):
            computed[slot] += count
            if computed[slot] == known[slot]:
                known[slot] += 1
                sampling += 1
        self._results.append(StepResult(plan.step, [self._token] * sampling))

    def poll(self, block: bool = False) -> list[StepResult]:
        results, self._results = self._results, []
        return results

    def filenos(self) -> list[int]:
        return []

    def shutdown(self) -> None:
        self._results = []
