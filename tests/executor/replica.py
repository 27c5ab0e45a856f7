"""Simulated replicas for tests: real processes, transport and supervision around a model that only waits."""

from __future__ import annotations

import select
import time

from remuda.config.engine import CacheConfig, EngineConfig, ParallelConfig, SchedulerConfig, SimulationConfig
from remuda.engine.ports import Executor
from remuda.protocol.sampling import SamplingParams
from remuda.protocol.step import NewSequence, StepPlan, StepResult
from tests.worker.fakes import model_config


def config(tp: int = 1, pp: int = 1, base_ms: float = 0.0, **parallel: object) -> EngineConfig:
    return EngineConfig(
        model=model_config("CF" * pp),
        parallel=ParallelConfig(tp, pp, layer_partition=(2,) * pp, **parallel),  # type: ignore[arg-type]
        cache=CacheConfig(block_size=4, num_pages_override=100),
        scheduler=SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=64, max_model_len=64),
        threads_per_rank=1,
        startup_timeout_s=60.0,
        simulation=SimulationConfig(base_ms=base_ms),
    )


def prefill(step: int = 0, slot: int = 0) -> StepPlan:
    sampling = SamplingParams(temperature=0.0)
    new = NewSequence(slot, [5, 6, 7], 3, 0, [[1 + 2 * slot], [2 + 2 * slot]], sampling)
    return StepPlan(step, [slot], [3], new=[new])


def decode(step: int, slot: int = 0) -> StepPlan:
    return StepPlan(step, [slot], [1])


def wait_for(executor: Executor, count: int, timeout_s: float = 20.0) -> list[StepResult]:
    """Poll as the engine does: sleep on the descriptors, then take what has come."""
    results: list[StepResult] = []
    deadline = time.monotonic() + timeout_s
    while len(results) < count:
        assert time.monotonic() < deadline, f"{len(results)} of {count} results after {timeout_s} s"
        select.select(executor.filenos(), [], [], 0.5)
        results += executor.poll()
    return results
