"""A request that was cut off and is submitted again with what it had emitted ends as if nothing had happened."""

from __future__ import annotations

import random

import msgspec
import pytest

from remuda.protocol.errors import InvalidRequest
from remuda.protocol.request import EngineRequest
from tests.engine.fakes import EOS, FakeRanks, Outcome, core_over, engine_config, request, run_to_end, tiny_model

PROMPT = [5 + i % 11 for i in range(13)]


def cut(req: EngineRequest, emitted: list[int]) -> EngineRequest:
    return msgspec.structs.replace(req, emitted_token_ids=emitted)


def outcome_of(req: EngineRequest, *, stages: int = 1, caching: bool = True) -> Outcome:
    config = engine_config(stages=stages, caching=caching, max_num_batched_tokens=8)
    ranks = FakeRanks(config, 500, rng=random.Random(3))
    outcome = run_to_end(core_over(config, ranks), [req])[req.request_id]
    ranks.shutdown()
    return outcome


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("caching", [False, True])
@pytest.mark.parametrize(
    "sampling",
    [
        {"max_tokens": 11, "ignore_eos": True},
        {"max_tokens": 40, "min_tokens": 9},
        {"max_tokens": None, "stop_token_ids": [7, 30, 41], "min_tokens": 3},
        {"max_tokens": 10, "ignore_eos": True, "logprobs": 0, "prompt_logprobs": 0},
    ],
)
def test_cut_at_any_token_it_ends_with_the_same_tokens(sampling: dict[str, object], caching: bool, stages: int) -> None:
    req = request("a", PROMPT, seed=4, **sampling)
    whole = outcome_of(req, stages=stages, caching=caching)
    assert whole.final is not None and len(whole.token_ids) > 3
    for count in range(len(whole.token_ids)):
        rest = outcome_of(cut(req, whole.token_ids[:count]), stages=stages, caching=caching)
        assert rest.token_ids == whole.token_ids[count:]
        assert rest.logprobs == whole.logprobs[count:]
        assert rest.final is not None and rest.final.finish_reason == whole.final.finish_reason
        assert rest.final.stop_token_id == whole.final.stop_token_id
        assert rest.first is not None and whole.first is not None
        assert rest.first.prompt_logprobs == (None if count else whole.first.prompt_logprobs)


def test_the_first_engine_stops_in_the_middle_of_many_and_a_second_one_goes_on() -> None:
    """With preemptions, chunks of prompts, sequences that have not begun and some that share their prompt."""
    rng = random.Random(9)
    config = engine_config(tiny_model("CCCF", 12), stages=2, max_num_batched_tokens=16, max_model_len=64)
    reqs = [
        request(f"r{i}", [*PROMPT[: 1 + i % 13], i], seed=i, max_tokens=rng.randint(1, 30), ignore_eos=i % 2 == 0)
        for i in range(20)
    ]
    expected = {req.request_id: outcome_of(req).token_ids for req in reqs}
    for steps in (0, 5, 17, 40):
        ranks = FakeRanks(config, 60, rng=rng)
        core = core_over(config, ranks)
        received: dict[str, list[int]] = {req.request_id: [] for req in reqs}
        ended = set()
        for req in reqs:
            core.add(req)
        for _ in range(steps):
            step = core.step(block=False)
            for output in step.outputs if step else ():
                received[output.request_id] += output.token_ids
                ended |= {output.request_id} if output.finish_reason else set()
        ranks.shutdown()
        rest = [cut(req, received[req.request_id]) for req in reqs if req.request_id not in ended]
        second = FakeRanks(config, 60, rng=rng)
        for name, outcome in run_to_end(core_over(config, second), rest).items():
            received[name] += outcome.token_ids
        second.shutdown()
        assert received == expected


def test_prompts_count_once_and_outputs_where_they_were_made() -> None:
    req = request("a", PROMPT, max_tokens=8, ignore_eos=True)
    emitted = outcome_of(req).token_ids[:5]
    config = engine_config()
    core = core_over(config, FakeRanks(config, 500, immediate=True))
    run_to_end(core, [cut(req, emitted)])
    stats = core.stats()
    assert (stats.prompt_tokens, stats.generated_tokens, stats.prefix_queries_tokens) == (0, 3, 0)


@pytest.mark.parametrize(
    ("emitted", "sampling", "what"),
    [
        ([50] * 8, {"max_tokens": 8}, "nothing is left"),
        ([50] * 300, {"max_tokens": None}, "nothing is left"),
        ([5000], {"max_tokens": 8}, "vocabulary"),
        ([-1], {"max_tokens": 8}, "vocabulary"),
    ],
)
def test_what_cannot_go_on_is_refused(emitted: list[int], sampling: dict[str, object], what: str) -> None:
    config = engine_config()
    core = core_over(config, FakeRanks(config, 500, immediate=True))
    with pytest.raises(InvalidRequest, match=what):
        core.add(cut(request("a", PROMPT, **sampling), emitted))
    assert not core.has_work and EOS not in emitted
