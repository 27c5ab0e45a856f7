"""Who runs, who waits, who gives way; and how decodes are dealt to the stages of a pipeline."""

from __future__ import annotations

import pytest

from remuda.config.engine import EngineConfig
from remuda.engine.core import EngineCore
from remuda.protocol.errors import ConfigError, InvalidRequest, QueueFull
from tests.engine.fakes import (
    CountingRanks,
    FakeRanks,
    Outcome,
    core_over,
    engine_config,
    request,
    run_step,
    tiny_model,
)


def core_of(config: EngineConfig, pages: int = 500) -> tuple[EngineCore, CountingRanks]:
    ranks = CountingRanks(pages)
    return core_over(config, ranks), ranks


def finish_order(core: EngineCore) -> list[str]:
    outcomes: dict[str, Outcome] = {}
    while core.has_work:
        run_step(core, outcomes)
    return list(outcomes)  # by first token


@pytest.mark.parametrize(("policy", "expected"), [("fcfs", ["a", "b", "c", "d"]), ("priority", ["c", "b", "d", "a"])])
def test_order_of_service(policy: str, expected: list[str]) -> None:
    core, _ = core_of(engine_config(policy=policy, max_num_seqs=1))
    for name, priority in (("a", 5), ("b", 1), ("c", -3), ("d", 1)):
        core.add(request(name, [5, 6, 7], priority=priority))
    assert finish_order(core) == expected


def test_decodes_and_prompts_share_a_step() -> None:
    core, ranks = core_of(engine_config(max_num_batched_tokens=10))
    core.add(request("a", [5] * 4, ignore_eos=True))
    core.step()
    core.add(request("b", [5] * 30))
    core.step()
    assert ranks.plans[-1].slots == [0, 1] and ranks.plans[-1].counts == [1, 9]


def test_the_queue_is_bounded_beyond_the_free_slots() -> None:
    core, _ = core_of(engine_config(max_num_seqs=2, max_waiting=3))
    for i in range(5):
        core.add(request(f"r{i}", [5, 6]))
    with pytest.raises(QueueFull) as refused:
        core.add(request("late", [5, 6]))
    assert refused.value.http_status == 429 and refused.value.retry_after_s >= 1
    core.step()  # one turn later the two free slots are taken
    with pytest.raises(QueueFull):
        core.add(request("late", [5, 6]))
    core.abort(["r3"])
    core.add(request("late", [5, 6]))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "empty"),
        ([5] * 64, "at most 63 fit the model length of 64"),
        ([5, 97], "vocabulary of 97"),
        ([5, -1], "vocabulary"),
    ],
)
def test_prompts_that_cannot_be_served_are_refused(prompt: list[int], message: str) -> None:
    core, _ = core_of(engine_config(max_model_len=64))
    with pytest.raises(InvalidRequest, match=message):
        core.add(request("bad", prompt))
    assert not core.has_work


def test_a_prompt_that_never_fits_the_cache_is_refused_and_a_shorter_one_runs_to_its_end() -> None:
    core, _ = core_of(engine_config(tiny_model("F"), block_size=4, max_model_len=256), pages=6)
    with pytest.raises(InvalidRequest, match="KV cache holds only 20"):
        core.add(request("bad", [5] * 20))
    core.add(request("good", [5] * 19, max_tokens=100, ignore_eos=True))
    assert finish_order(core) == ["good"]


def test_a_cache_without_room_for_anything_is_refused_at_start() -> None:
    with pytest.raises(ConfigError, match="do not hold one sequence"):
        core_of(engine_config(), pages=4)


def test_a_request_id_in_use_is_refused() -> None:
    core, _ = core_of(engine_config())
    core.add(request("a", [5]))
    with pytest.raises(InvalidRequest, match="in use"):
        core.add(request("a", [6]))


@pytest.mark.parametrize(("policy", "victim"), [("fcfs", "c"), ("priority", "b")])
def test_short_of_pages_the_last_in_order_gives_way_and_comes_back(policy: str, victim: str) -> None:
    config = engine_config(tiny_model("F"), block_size=4, policy=policy, caching=False)
    core, _ = core_of(config, pages=10)
    for name, priority in (("a", 0), ("b", 9), ("c", 0)):
        core.add(request(name, [5] * 7, max_tokens=9, ignore_eos=True, priority=priority))
    preempted = set()
    while core.has_work:
        before = core.stats().preemptions
        run_step(core, {})
        if core.stats().preemptions > before:
            preempted |= {name for name, seq in core._sequences.items() if seq.slot < 0}
    assert preempted == {victim}
    assert core.stats().generated_tokens == 27


def test_a_sequence_is_never_scheduled_beyond_its_last_token() -> None:
    config = engine_config(steps_in_flight=5, max_num_seqs=2)
    ranks = FakeRanks(config, 500)
    core = core_over(config, ranks)
    core.add(request("a", [5] * 3, max_tokens=2, ignore_eos=True))
    core.add(request("b", [5] * 250, max_tokens=None, ignore_eos=True))  # the model length leaves 6 tokens
    while core.has_work:
        run_step(core, {})
    rows = [plan.slots.count(0) for plan in ranks.plans]
    assert sum(rows) == 2
    assert core.stats().generated_tokens == 2 + 6
    ranks.shutdown()


def test_plans_are_made_before_tokens_are_seen() -> None:
    for depth, expected in ((1, 1), (2, 2), (3, 3)):
        config = engine_config(steps_in_flight=depth)
        ranks = FakeRanks(config, 500)
        core = core_over(config, ranks)
        core.add(request("a", [5] * 3, max_tokens=50, ignore_eos=True))
        ranks.poll = lambda: []  # type: ignore[method-assign]  # nothing comes back
        for _ in range(4):
            core.step(block=False)
        assert len(ranks.plans) == expected
        ranks.shutdown()


def test_prompts_are_let_in_only_if_those_already_begun_will_fit_as_well() -> None:
    config = engine_config(
        tiny_model("F"), block_size=4, caching=False, max_num_batched_tokens=64, max_prefill_chunk=5
    )  # fmt: skip
    core, ranks = core_of(config, pages=25)  # 96 tokens
    for name in "ab":
        core.add(request(name, [5] * 60, max_tokens=4, ignore_eos=True))
    while core.has_work:
        run_step(core, {})
    assert core.stats().preemptions == 0
    assert [plan.slots for plan in ranks.plans if plan.new] == [[0], [0]]


def test_prompt_logprobs_are_not_asked_for_again_after_a_preemption() -> None:
    core, ranks = core_of(engine_config(tiny_model("F"), block_size=4, caching=False), pages=10)
    for name in "ab":
        core.add(request(name, [5] * 7, max_tokens=15, ignore_eos=True, prompt_logprobs=1))
    while core.has_work:
        run_step(core, {})
    entries = [new for plan in ranks.plans for new in plan.new]
    assert [new.sampling.prompt_logprobs for new in entries] == [1, 1, None]
    assert [new.prompt_len for new in entries] == [7, 7, 7] and len(entries[2].token_ids) > 7


# ----------------------------------------------------------------------------------------------------- pipeline cohorts


def decode_rows(stages: int, sequences: int, steps: int = 40) -> list[list[int]]:
    """Slots of the plans once everybody decodes."""
    config = engine_config(stages=stages, max_num_seqs=64, max_num_batched_tokens=1000, steps_in_flight=stages + 1)
    core, ranks = core_of(config, pages=5000)
    for i in range(sequences):
        core.add(request(f"r{i}", [5] * 4, max_tokens=200, ignore_eos=True))
    for _ in range(steps):
        core.step(block=False)
    return [plan.slots for plan in ranks.plans if not plan.new][stages:]


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("sequences", [4, 8, 13, 64])
def test_decodes_are_dealt_to_equal_cohorts(stages: int, sequences: int) -> None:
    plans = decode_rows(stages, sequences)
    for plan in plans:
        assert sequences // stages <= len(plan) <= -(-sequences // stages)
    for first in range(0, len(plans) - stages, stages):  # each round runs everybody once
        assert sorted(slot for plan in plans[first : first + stages] for slot in plan) == list(range(sequences))


def test_cohorts_even_out_when_one_of_them_ends() -> None:
    stages = 4
    config = engine_config(stages=stages, max_num_seqs=64, max_num_batched_tokens=1000, steps_in_flight=5)
    core, ranks = core_of(config, pages=5000)
    for i in range(32):
        core.add(request(f"r{i}", [5] * 4, max_tokens=200, ignore_eos=True))
    for _ in range(40):
        core.step(block=False)
    doomed = ranks.plans[-1].slots
    core.abort([name for name, seq in core._sequences.items() if seq.slot in doomed])
    assert core.stats().running == 24
    before = len(ranks.plans)
    for _ in range(20):
        core.step(block=False)
    after = [plan.slots for plan in ranks.plans[before:]]
    assert all(len(slots) <= 6 for slots in after)
    for first in range(2 * stages, len(after) - stages, stages):
        assert len({slot for slots in after[first : first + stages] for slot in slots}) == 24


def test_with_fewer_sequences_than_stages_nobody_waits_for_an_empty_turn() -> None:
    assert all(len(plan) == 1 for plan in decode_rows(4, 2))
    plans = decode_rows(4, 1)
    assert plans and all(plan == [0] for plan in plans)


def test_one_sequence_alone_runs_ahead_by_one_token_only_so_that_a_newcomer_need_not_wait() -> None:
    config = engine_config(stages=4)
    ranks = FakeRanks(config, 500)
    core = core_over(config, ranks)
    core.add(request("a", [5] * 3, max_tokens=50, ignore_eos=True))
    ranks.poll = lambda: []  # type: ignore[method-assign]  # nothing comes back
    run_step(core, {})
    assert [plan.slots for plan in ranks.plans] == [[0], [0]]
    core.add(request("b", [5] * 3, max_tokens=50, ignore_eos=True))
    run_step(core, {})
    assert [plan.slots for plan in ranks.plans] == [[0], [0], [1], [1]]
    ranks.shutdown()
