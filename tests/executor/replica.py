"""Simulated replicas for tests: real processes, transport and supervision around a model that only waits."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path

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


def processes_below(pid: int) -> dict[int, str]:
    """pid -> title of every live descendant."""
    parents, titles = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                title = (entry / "cmdline").read_bytes().rstrip(b"\0").decode(errors="replace")
            except OSError:
                continue
            if stat[0] != "Z":
                parents[int(entry.name)], titles[int(entry.name)] = int(stat[1]), title
    found = {}
    for child in parents:
        ancestor = child
        while ancestor in parents and ancestor != pid:
            ancestor = parents[ancestor]
        if ancestor == pid and child != pid:
            found[child] = titles[child]
    return found


def still_alive(pids: list[int]) -> list[int]:
    """Those of `pids` that are still alive (zombies do not count)."""
    alive = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if state != "Z":
            alive.append(pid)
    return alive


def wait_until_gone(pids: list[int], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while left := still_alive(pids):
        assert time.monotonic() < deadline, f"still alive after {timeout_s} s: {left}"
        time.sleep(0.02)


def pid_of(title: str) -> int:
    """The descendant of this process with that title."""
    (pid,) = [pid for pid, found in processes_below(os.getpid()).items() if found == title]
    return pid
