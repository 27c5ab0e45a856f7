"""Rank processes: plans in, results out, and nothing left behind however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest

from remuda.config.engine import EngineConfig
from remuda.executor.multiproc import MultiprocExecutor
from remuda.protocol.errors import RemudaError, ReplicaDied
from remuda.protocol.progress import PhaseProgress
from remuda.protocol.step import StepPlan
from tests.executor.replica import config, decode, prefill, wait_for
from tests.processes import descendants, titled, wait_until_gone


@contextmanager
def started(config: EngineConfig, progress: list[PhaseProgress] | None = None) -> Iterator[MultiprocExecutor]:
    executor = MultiprocExecutor(config)
    try:
        executor.start((progress if progress is not None else []).append)
        yield executor
    finally:
        executor.shutdown()


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_plans_give_results_in_order(tp: int, pp: int) -> None:
    progress: list[PhaseProgress] = []
    with started(config(tp, pp), progress) as executor:
        titles = {proc.title for proc in descendants(os.getpid())}
        assert {f"remuda: rank {rank} tp{rank % tp} pp{rank // tp}" for rank in range(tp * pp)} <= titles
        executor.submit(prefill())
        for step in range(1, 20):  # none of these waits for the result of the one before
            executor.submit(decode(step))
        executor.submit(StepPlan(20, [], [], released=[0]))
        results = wait_for(executor, 21)
        assert [result.step for result in results] == list(range(21))
        assert [result.tokens for result in results] == [[1]] * 20 + [[]]
        family = descendants(os.getpid())
    wait_until_gone(family, 1.0)  # shutdown() returns when they are
    assert {p.phase for p in progress} >= {"handshake", "mesh", "weights", "memory", "self-test"}
    assert {p.rank for p in progress} == set(range(tp * pp))
    executor.shutdown()  # again, in vain


def test_a_large_plan_and_many_small_ones_do_not_block_the_engine() -> None:
    """More bytes than any socket buffer holds, while the rank is busy: submit must return at once."""
    with started(config(base_ms=200.0)) as executor:
        executor.submit(prefill())
        begin = time.monotonic()
        for step in range(1, 6):
            executor.submit(StepPlan(step, [0], [1], released=[3] * 400_000))
        assert time.monotonic() - begin < 0.5
        assert len(wait_for(executor, 6)) == 6


@pytest.mark.parametrize("victim", ["remuda: rank 0 tp0 pp0", "remuda: rank 3 tp1 pp1"])
def test_a_killed_rank_ends_all_and_is_named(victim: str) -> None:
    with started(config(2, 2, base_ms=20.0)) as executor:
        executor.submit(prefill())
        wait_for(executor, 1)
        for step in range(1, 50):
            executor.submit(decode(step))
        family = descendants(os.getpid())
        rank = int(victim.split()[2])
        begin = time.monotonic()
        titled(victim).kill()
        with pytest.raises(ReplicaDied, match=rf"rank {rank} on node 0 was killed by SIGKILL") as caught:
            wait_for(executor, 1000)
        assert (caught.value.rank, caught.value.node) == (rank, 0)
        wait_until_gone(family, 5.0 - (time.monotonic() - begin))
        with pytest.raises(ReplicaDied):  # and from now on always
            executor.poll()


def test_an_idle_replica_notices_as_well() -> None:
    with started(config(2, 1)) as executor:
        os.kill(titled("remuda: rank 1 tp1 pp0").pid, signal.SIGSEGV)
        with pytest.raises(ReplicaDied, match="rank 1 on node 0 was killed by SIGSEGV"):
            wait_for(executor, 1)


def test_a_killed_launcher_takes_its_ranks_along() -> None:
    with started(config(2, 1)) as executor:
        family = descendants(os.getpid())
        titled("remuda: launcher 0").kill()
        with pytest.raises(ReplicaDied, match="node 0"):
            wait_for(executor, 1)
        wait_until_gone(family)


def test_nothing_survives_a_killed_engine() -> None:
    """The engine is another process here; it is killed without a chance to clean up."""
    engine = f"""
        import msgspec, sys
        from remuda.config.engine import EngineConfig
        from remuda.executor.multiproc import MultiprocExecutor
        config = msgspec.json.decode({msgspec.json.encode(config(2, 1))!r}, type=EngineConfig)
        executor = MultiprocExecutor(config)
        executor.start(lambda _: None)
        print("up", flush=True)
        sys.stdin.read()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(engine)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    family = descendants(process.pid)
    assert len(family) == 3
    process.kill()
    process.communicate()
    wait_until_gone(family)


def test_a_rank_that_fails_at_start_is_named_with_its_phase_and_nothing_stays() -> None:
    broken = msgspec.structs.replace(config(2, 1), simulation=None)  # the fake architecture is not registered
    executor = MultiprocExecutor(broken)
    with pytest.raises(RemudaError, match=r"rank [01].* on node 0 failed in phase weights: .*'Fake'") as caught:
        executor.start(lambda _: None)
    assert "Traceback" not in caught.value.message
    assert not any("remuda" in proc.title for proc in descendants(os.getpid()))


def test_a_cache_too_small_for_one_sequence_is_refused_with_a_table() -> None:
    small = config(1, 2)
    small = msgspec.structs.replace(small, cache=msgspec.structs.replace(small.cache, num_pages_override=10))
    with pytest.raises(RemudaError, match=r"room for 10 pages, but one sequence of 64 tokens needs \d+"):
        MultiprocExecutor(small).start(lambda _: None)
    assert not any("remuda" in proc.title for proc in descendants(os.getpid()))


def test_a_start_that_takes_too_long_names_who_is_late() -> None:
    late = msgspec.structs.replace(config(1, 2), startup_timeout_s=0.01)
    with pytest.raises(RemudaError, match="node 0 of 1 did not join within"):
        MultiprocExecutor(late).start(lambda _: None)


def test_the_engine_side_imports_no_torch() -> None:
    code = (
        "import sys; import remuda.executor.multiproc, remuda.executor.nodes, remuda.executor.noop; import "
        "remuda.executor.inproc; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
