"""Stop rules, logprobs, aborts and counters of the engine core."""

from __future__ import annotations

import pytest

from remuda.protocol.errors import ReplicaDied
from remuda.protocol.request import FinishReason
from tests.engine.fakes import (
    EOS,
    FakeRanks,
    Outcome,
    brute_force,
    core_over,
    engine_config,
    request,
    run_step,
    run_to_end,
)


class ScriptedRanks(FakeRanks):
    """Answers every sampling row with the next token of a script."""

    script: list[int] = []

    def poll(self, block=False):  # type: ignore[no-untyped-def]
        results = super().poll()
        for result in results:
            result.tokens[:] = [self.script.pop(0) for _ in result.tokens]
        return results


def run_script(script: list[int], **sampling: object) -> Outcome:
    config = engine_config(max_model_len=20)
    ranks = ScriptedRanks(config, 500, immediate=True)
    ranks.script = [*script, *[50] * 100]
    return run_to_end(core_over(config, ranks), [request("a", [5, 6, 7], **sampling)])["a"]


@pytest.mark.parametrize(
    ("sampling", "tokens", "reason", "stop_token"),
    [
        ({"max_tokens": 3}, [10, 11, 12], FinishReason.LENGTH, None),
        ({"max_tokens": 9}, [10, 11, 12, EOS], FinishReason.STOP, None),
        ({"max_tokens": 4}, [10, 11, 12, EOS], FinishReason.STOP, None),
        ({"max_tokens": 9, "stop_token_ids": [11]}, [10, 11], FinishReason.STOP, 11),
        ({"max_tokens": 9, "ignore_eos": True}, [10, 11, 12, EOS, 13, 50, 50, 50, 50], FinishReason.LENGTH, None),
        ({"max_tokens": 9, "ignore_eos": True, "stop_token_ids": [EOS]}, [10, 11, 12, EOS], FinishReason.STOP, EOS),
        ({"max_tokens": 9, "stop_token_ids": [EOS]}, [10, 11, 12, EOS], FinishReason.STOP, None),
        ({"max_tokens": 9, "stop_token_ids": [10, 13], "min_tokens": 2}, [10, 11, 12, EOS], FinishReason.STOP, None),
        ({"max_tokens": 9, "stop_token_ids": [13], "min_tokens": 4}, [10, 11, 12, EOS, 13], FinishReason.STOP, 13),
        ({"max_tokens": None}, [10, 11, 12, EOS], FinishReason.STOP, None),
    ],
)
def test_stop_rules(
    sampling: dict[str, object], tokens: list[int], reason: FinishReason, stop_token: int | None
) -> None:
    outcome = run_script([10, 11, 12, EOS, 13], **sampling)
    assert outcome.token_ids == tokens
    assert outcome.final is not None
    assert (outcome.final.finish_reason, outcome.final.stop_token_id) == (reason, stop_token)


def test_the_model_length_ends_a_request() -> None:
    outcome = run_script([], max_tokens=None)
    assert len(outcome.token_ids) == 17 and outcome.final is not None
    assert outcome.final.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("depth", [1, 3])
def test_logits_that_are_not_finite_end_only_their_own_request(depth: int) -> None:
    config = engine_config(steps_in_flight=depth)
    ranks = FakeRanks(config, 500)
    ranks.poison = {77}
    core = core_over(config, ranks)
    good, bad = request("good", [5, 6, 7], ignore_eos=True), request("bad", [8, 9], seed=77, ignore_eos=True)
    outcomes = run_to_end(core, [good, bad])
    final = outcomes["bad"].final
    assert final is not None and final.finish_reason is FinishReason.ERROR and final.error is not None
    assert final.error.http_status == 500 and "not finite" in final.error.message
    assert outcomes["bad"].token_ids == brute_force(bad, 256)[0][:2]
    assert outcomes["good"].token_ids == brute_force(good, 256)[0]
    assert core.stats().kv_pages_used == 0
    ranks.shutdown()


def test_an_abort_frees_at_once_and_late_results_are_dropped() -> None:
    config = engine_config(steps_in_flight=3)
    ranks = FakeRanks(config, 500)
    core = core_over(config, ranks)
    for name in "ab":
        core.add(request(name, [5] * 9, max_tokens=100, ignore_eos=True))
    arrived, ranks.poll = ranks.poll, list  # type: ignore[method-assign]  # hold results back
    run_step(core, {})
    assert core.stats().kv_pages_used > 0
    core.abort(["a", "b", "nobody"])
    assert core.stats().kv_pages_used == core.stats().running == 0
    core.add(request("c", [5] * 9, max_tokens=2, ignore_eos=True))  # takes over a slot and pages
    ranks.poll = arrived  # type: ignore[method-assign]
    outcomes: dict[str, Outcome] = {}
    while core.has_work:
        run_step(core, outcomes)
    assert list(outcomes) == ["c"] and len(outcomes["c"].token_ids) == 2
    ranks.shutdown()


def test_prompt_logprobs_come_whole_with_the_first_token() -> None:
    config = engine_config(max_num_batched_tokens=7)
    core = core_over(config, FakeRanks(config, 500, immediate=True))
    prompt = [5 + i for i in range(30)]
    outcome = run_to_end(core, [request("a", prompt, prompt_logprobs=0, logprobs=0)])["a"]
    assert outcome.first is not None and outcome.first.prompt_logprobs is not None
    assert [entry and entry.token_ids[0] for entry in outcome.first.prompt_logprobs] == [None, *prompt[1:]]
    assert outcome.final is not None and (outcome.final is outcome.first or outcome.final.prompt_logprobs is None)


def test_counters() -> None:
    config = engine_config(max_num_seqs=1)
    core = core_over(config, FakeRanks(config, 500, immediate=True))
    for name in "ab":
        core.add(request(name, [5] * 9, max_tokens=3, ignore_eos=True))
    core.step()
    stats = core.stats()
    assert (stats.running, stats.waiting, stats.steps, stats.prompt_tokens) == (1, 1, 1, 9)
    assert stats.kv_pages_total == 499 and stats.kv_pages_used == 12
    while core.has_work:
        core.step()
    stats = core.stats()
    assert (stats.running, stats.waiting, stats.prompt_tokens, stats.generated_tokens) == (0, 0, 18, 6)
    assert stats.kv_pages_used == 0 and stats.prefix_hits_tokens == 8


def test_blocking_step_waits_for_the_ranks_descriptor() -> None:
    config = engine_config(steps_in_flight=2)
    ranks = FakeRanks(config, 500)  # its descriptor is readable from the start
    core = core_over(config, ranks)
    core.add(request("a", [5] * 9, max_tokens=3, ignore_eos=True))
    outputs = []
    while core.has_work:
        step = core.step(block=True)
        outputs += step.outputs if step else []
    assert [len(o.token_ids) for o in outputs] == [1, 1, 1]
    ranks.shutdown()


def test_a_closed_engine_says_so_instead_of_waiting() -> None:
    config = engine_config()
    core = core_over(config, FakeRanks(config, 500, immediate=True))
    core.add(request("a", [5] * 9))
    core.close()
    with pytest.raises(ReplicaDied, match="closed"):
        core.step()
