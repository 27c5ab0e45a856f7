"""Sizing, causes, the no-op and the in-process executor."""

from __future__ import annotations

import msgspec
import pytest

from remuda.executor import supervision
from remuda.executor.inproc import InprocExecutor
from remuda.executor.noop import NoopExecutor
from remuda.executor.sizing import agree_on_pages
from remuda.kv.groups import SequencePages
from remuda.protocol.errors import ConfigError, PeerLost
from remuda.protocol.step import MemoryReport, RankFailed, StepPlan
from tests.executor.replica import config, decode, prefill


def report(rank: int, kv_bytes: int, page_bytes: int = 1000) -> MemoryReport:
    return MemoryReport(rank, 10, 10, kv_bytes, page_bytes, [], [])


def auto(**scheduler: int):  # type: ignore[no-untyped-def]
    base = config(1, 2)
    return msgspec.structs.replace(
        base,
        model=msgspec.structs.replace(base.model, architecture="LlamaForCausalLM"),
        cache=msgspec.structs.replace(base.cache, num_pages_override=None),
        scheduler=msgspec.structs.replace(base.scheduler, **scheduler),
    )


def test_the_poorest_rank_decides() -> None:
    # 64 tokens in pages of 4: 16 for the full group, and what a chunk of 10 may overlap for the chunked one.
    setup = auto()
    assert SequencePages(setup.model.kv_groups, 4).of(64) == 16 + 4
    assert agree_on_pages(setup, [report(0, 90_000), report(1, 50_000)]) == 50
    assert agree_on_pages(setup, [report(0, 90_000), report(1, 90_000, 3000)]) == 30


def test_no_more_pages_than_could_be_used() -> None:
    assert agree_on_pages(auto(max_num_seqs=4, max_num_batched_tokens=8), [report(0, 10**9)]) == 4 * 20 + 2 * 2 + 1


def test_a_cache_that_cannot_hold_one_sequence_shows_the_table() -> None:
    with pytest.raises(ConfigError, match="needs 21") as caught:
        agree_on_pages(auto(), [report(0, 10_000), report(1, 20_000)])
    lines = caught.value.message.splitlines()
    assert len(lines) == 6 and "--max-model-len" in lines[-1]
    assert lines[-2].startswith("Sizes") and lines[-2].endswith(": 2 x 2, 1 x 4")
    assert agree_on_pages(auto(), [report(0, 21_000)]) == 21


def test_the_cause_is_the_kill_not_its_echo() -> None:
    echo = supervision.rank_failed(
        RankFailed(1, 0, "serving", "lost a tensor-parallel peer: ...", code=PeerLost.default_code)
    )
    kill = supervision.rank_killed(0, 3, 9)
    other = supervision.rank_disconnected(0, 2, "connection closed by peer")
    assert supervision.cause([other, echo, kill]) is kill
    assert kill.as_error().message.startswith("rank 3 on node 0 was killed by SIGKILL")
    bug = supervision.rank_failed(RankFailed(2, 1, "serving", "ValueError: no", "..."))
    assert supervision.cause([echo, bug, other]) is bug
    assert supervision.cause([bug, supervision.node_lost(1, "no route to host")]).rank is None


def test_the_end_of_a_rank_does_not_hide_what_it_said() -> None:
    late = supervision.rank_failed(RankFailed(1, 0, "serving", "waited 60 s in vain", code=PeerLost.default_code))
    ends = [supervision.rank_exited(0, 1, 1), supervision.rank_disconnected(0, 1, "connection closed by peer")]
    assert supervision.cause([*ends, late]) is late
    silent = supervision.rank_exited(0, 2, 7)
    assert supervision.cause([*ends, late, silent]) is silent


def test_equal_failures_are_told_once() -> None:
    failures = [RankFailed(rank, rank // 2, "weights", "model.safetensors is truncated", "") for rank in (2, 0, 1)]
    failures.append(RankFailed(3, 1, "mesh", "could not connect the pipeline", code=PeerLost.default_code))
    text = supervision.describe_startup_failures(failures)
    assert text.splitlines()[0] == "rank 0, 1, 2 on node 0, 1 failed in phase weights: model.safetensors is truncated"
    assert "pipeline" not in text
    assert "pipeline" in supervision.describe_startup_failures(failures[-1:])


def test_noop_follows_the_contract() -> None:
    executor = NoopExecutor(config())
    assert executor.start(lambda _: None).kv_pages == 100
    executor.submit(StepPlan(0, [0], [2], new=prefill().new))
    executor.submit(StepPlan(1, [0], [1]))
    executor.submit(decode(2))
    assert [len(result.tokens) for result in executor.poll()] == [0, 1, 1]
    assert executor.poll() == []


def test_in_process_results_are_ready_after_submit() -> None:
    executor = InprocExecutor(config())
    report = executor.start(lambda _: None)
    assert report.kv_pages == 100 and executor.filenos() == []
    executor.submit(prefill())
    executor.submit(decode(1))
    assert [result.tokens for result in executor.poll()] == [[1], [1]]
    executor.shutdown()
    executor.shutdown()
    with pytest.raises(ConfigError):
        InprocExecutor(config(2, 1))
