"""A pipeline in virtual time: stages take as long as a formula says, so utilisation is exact and tests are quick."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from remuda.engine.core import EngineCore
from remuda.protocol.request import EngineRequest
from remuda.protocol.step import StepPlan, StepResult
from tests.engine.fakes import EOS, CountingRanks


@dataclass(frozen=True)
class StageCost:
    """Milliseconds of one stage for one micro-batch."""

    base_ms: float = 5.0
    row_ms: float = 0.0
    prefill_token_ms: float = 0.0

    def of(self, plan: StepPlan) -> float:
        prefill = sum(count for count in plan.counts if count > 1)
        rows = sum(count == 1 for count in plan.counts)
        return self.base_ms + self.row_ms * rows + self.prefill_token_ms * prefill


class VirtualPipeline(CountingRanks):
    """Stages run plans in order. The first stage waits for tokens that are still on their way from the last."""

    def __init__(self, pages: int, stages: int, cost: StageCost) -> None:
        super().__init__(pages)
        self.now_ms = 0.0
        self.busy: list[list[tuple[float, float]]] = [[] for _ in range(stages)]  # per stage: (start, end) of each plan
        self._cost = cost
        self._free_ms = [0.0] * stages
        self._sampled_ms: dict[int, float] = {}  # by slot: when its last token leaves the last stage
        self._arriving: list[tuple[float, StepResult]] = []

    def filenos(self) -> list[int]:
        return [0]  # never waited for: the test moves the clock

    def submit(self, plan: StepPlan) -> None:
        self.plans.append(plan)
        for new in plan.new:
            self._sampled_ms.pop(new.slot, None)
        ready_ms = max([self.now_ms, *(self._sampled_ms.get(slot, 0.0) for slot in plan.slots)])
        duration_ms = self._cost.of(plan)
        for stage, free_ms in enumerate(self._free_ms):
            start_ms = max(ready_ms, free_ms)
            ready_ms = self._free_ms[stage] = start_ms + duration_ms
            self.busy[stage].append((start_ms, ready_ms))
        sampling = self.sampling_rows(plan)
        for slot in sampling:
            self._sampled_ms[slot] = ready_ms
        self._arriving.append((ready_ms, StepResult(plan.step, [EOS + 1] * len(sampling))))

    def poll(self, block: bool = False) -> list[StepResult]:
        count = sum(when_ms <= self.now_ms for when_ms, _ in self._arriving)
        arrived, self._arriving = self._arriving[:count], self._arriving[count:]
        return [result for _, result in arrived]

    @property
    def next_result_ms(self) -> float:
        return self._arriving[0][0] if self._arriving else float("inf")

    def utilisation(self, first_ms: float, last_ms: float) -> list[float]:
        """Per stage, the share of a window in which it was computing."""
        shares = []
        for spans in self.busy:
            inside = sum(max(0.0, min(end, last_ms) - max(start, first_ms)) for start, end in spans)
            shares.append(inside / (last_ms - first_ms))
        return shares


def serve(
    core: EngineCore, pipeline: VirtualPipeline, arrivals: Callable[[int], EngineRequest | None], gap_ms: float,
    until_ms: float, engine_ms: float = 0.5,
) -> None:  # fmt: skip
    """Run for `until_ms`: request number i arrives at i * gap_ms, and each turn of the engine takes `engine_ms`."""
    number, next_arrival_ms = 0, 0.0
    while pipeline.now_ms < until_ms:
        while next_arrival_ms <= pipeline.now_ms:
            req = arrivals(number)
            if req is not None:
                core.add(req)
            number += 1
            next_arrival_ms += gap_ms
        core.step(block=False)
        event_ms = min(pipeline.next_result_ms, next_arrival_ms)
        pipeline.now_ms = max(pipeline.now_ms + engine_ms, event_ms)
