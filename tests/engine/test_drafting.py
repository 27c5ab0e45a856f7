"""What a sequence with drafts gets, and what it costs. That its tokens are right: test_engine_equals_brute_force.py."""

from __future__ import annotations

import random

import pytest

from remuda.engine.core import EngineCore
from remuda.engine.sequence import Sequence
from remuda.protocol.request import EngineRequest, FinishReason, RequestOutput
from tests.engine.fakes import FakeRanks, brute_force, core_over, engine_config, request, run_to_end, tiny_model


class Oracle:
    """Always right, `count` tokens ahead."""

    def __init__(self, requests: list[EngineRequest], count: int) -> None:
        self._future = {r.request_id: [*r.prompt_token_ids, *brute_force(r, 256)[0]] for r in requests}
        self._count = count

    def propose(self, seq: Sequence, most: int) -> list[int]:
        return self._future[seq.request_id][len(seq.token_ids) :][: self._count]


class Liar:
    """Always wrong, and far too talkative."""

    def propose(self, seq: Sequence, most: int) -> list[int]:
        return [(seq.token_ids[-1] + 1) % 90 + 3] * 50


def outputs_of(core: EngineCore, requests: list[EngineRequest]) -> list[RequestOutput]:
    for req in requests:
        core.add(req)
    outputs = []
    while core.has_work:
        step = core.step(block=False)
        core.scheduler.check()
        outputs += step.outputs if step else []
    return outputs


@pytest.mark.parametrize("stages", [1, 3])
def test_right_drafts_save_steps_and_come_out_together(stages: int) -> None:
    req = request("a", [5, 6, 7], max_tokens=33, ignore_eos=True, logprobs=0)
    config = engine_config(tiny_model("F"), stages=stages)
    ranks = FakeRanks(config, 500)
    outputs = outputs_of(core_over(config, ranks, Oracle([req], 3)), [req])
    assert [len(output.token_ids) for output in outputs] == [1, *[4] * 8]
    assert [token for output in outputs for token in output.token_ids] == brute_force(req, 256)[0]
    for output in outputs:
        assert [entry.token_ids[0] for entry in output.logprobs or []] == output.token_ids
    assert sum(len(plan.slots) for plan in ranks.plans) == 9
    ranks.shutdown()


def test_a_drafter_that_is_always_wrong_costs_no_token() -> None:
    requests = [request(f"r{i}", [5 + i] * 7, max_tokens=30, ignore_eos=True, seed=i) for i in range(5)]
    config = engine_config(max_num_batched_tokens=16)
    ranks = FakeRanks(config, 500)
    core = core_over(config, ranks, Liar())
    outcomes = run_to_end(core, requests)
    for req in requests:
        assert outcomes[req.request_id].token_ids == brute_force(req, 256)[0]
    decodes = [plan for plan in ranks.plans if plan.drafts]
    assert decodes and all(len(plan.slots) <= sum(plan.counts) <= 16 for plan in decodes)
    assert core.stats().generated_tokens == 150 and core.stats().preemptions == 0
    ranks.shutdown()


def test_the_end_may_lie_within_a_run() -> None:
    """A stop token is the last that comes out, however many drafts behind it were right; the rest is dropped."""
    lead = request("a", [5, 6, 7], max_tokens=30, ignore_eos=True)
    stop = brute_force(lead, 256)[0][6]
    req = request("a", [5, 6, 7], max_tokens=30, ignore_eos=True, stop_token_ids=[stop])
    expected = brute_force(req, 256)[0]
    config = engine_config(tiny_model("F"))
    core = core_over(config, FakeRanks(config, 500, immediate=True), Oracle([lead], 4))
    outputs = outputs_of(core, [req])
    assert [token for output in outputs for token in output.token_ids] == expected and expected[-1] == stop
    assert (outputs[-1].finish_reason, outputs[-1].stop_token_id) == (FinishReason.STOP, stop)
    assert core.stats().generated_tokens == len(expected) and core.stats().kv_pages_used == 0


@pytest.mark.parametrize("max_tokens", range(1, 9))
def test_no_row_runs_past_the_end_of_its_request(max_tokens: int) -> None:
    req = request("a", [5, 6, 7], max_tokens=max_tokens, ignore_eos=True)
    longer = request("a", [5, 6, 7], max_tokens=30, ignore_eos=True)
    config = engine_config(tiny_model("F"))
    ranks = FakeRanks(config, 500, immediate=True)
    outputs = outputs_of(core_over(config, ranks, Oracle([longer], 5)), [req])
    assert sum(len(output.token_ids) for output in outputs) == max_tokens
    assert sum(sum(plan.counts) for plan in ranks.plans) <= 3 + max_tokens - 1


def test_tokens_before_one_that_is_not_finite_still_come() -> None:
    req = request("bad", [8, 9], seed=77, ignore_eos=True)
    config = engine_config(tiny_model("F"))
    ranks = FakeRanks(config, 500, immediate=True)
    ranks.poison = {77}
    outputs = outputs_of(core_over(config, ranks, Oracle([req], 5)), [req])
    assert [token for output in outputs for token in output.token_ids] == brute_force(req, 256)[0][:2]
    assert outputs[-1].finish_reason is FinishReason.ERROR


def test_nobody_is_preempted_for_drafts() -> None:
    """Pages for 2 x 12 tokens: enough for both requests, but not for drafts besides."""
    requests = [request(f"r{i}", [5 + i] * 4, max_tokens=8, ignore_eos=True, seed=i) for i in range(2)]
    config = engine_config(tiny_model("F"), block_size=1, caching=False)
    core = core_over(config, FakeRanks(config, 1 + 2 * 12, immediate=True), Liar())
    outputs = outputs_of(core, requests)
    assert sum(len(output.token_ids) for output in outputs) == 16
    assert core.stats().preemptions == 0


def test_a_preempted_sequence_takes_what_its_drafts_brought() -> None:
    rng = random.Random(2)
    config = engine_config(tiny_model("CCCF", 8), block_size=2, stages=2, steps_in_flight=4, caching=False)
    ranks = FakeRanks(config, 4 * 32 + 1, rng=rng)
    requests = [request(f"r{i}", [i + 3] * 5, max_tokens=50, ignore_eos=True) for i in range(6)]
    core = core_over(config, ranks, Oracle(requests, 3))
    outcomes = run_to_end(core, requests)
    assert core.stats().preemptions > 3
    for req in requests:
        assert outcomes[req.request_id].token_ids == brute_force(req, core.scheduler.longest_sequence)[0]
    ranks.shutdown()
