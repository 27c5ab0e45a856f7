"""Whatever the batch, the chunks, the cache, the pipeline and the preemptions: the text of a request is the same."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remuda.protocol.request import EngineRequest, FinishReason, ImageInput
from tests.engine.fakes import (
    VOCAB,
    FakeDrafter,
    FakeRanks,
    Outcome,
    brute_force,
    core_over,
    engine_config,
    request,
    run_step,
    run_to_end,
    tiny_model,
)


def random_requests(rng: random.Random, count: int, longest_prompt: int) -> list[EngineRequest]:
    """Prompts share prefixes, some share salts and images; sampling asks for everything that the engine looks at."""
    stems = [[rng.randrange(VOCAB) for _ in range(longest_prompt)] for _ in range(3)]
    requests = []
    for number in range(count):
        length = rng.randint(1, longest_prompt)
        prompt = rng.choice(stems)[: rng.randint(0, length)]
        prompt = prompt + [rng.randrange(VOCAB) for _ in range(length - len(prompt))]
        images = []
        if length > 6 and rng.random() < 0.3:
            images = [ImageInput(rng.choice(["aa", "bb"]), rng.randint(0, length - 5), rng.randint(1, 5), 1, b"")]
        requests.append(
            request(
                f"r{number}",
                prompt,
                seed=rng.randrange(4),
                priority=rng.randrange(3),
                salt=rng.choice(["", "", "x"]),
                images=images,
                max_tokens=rng.choice([1, 2, 9, 30, None]),
                min_tokens=rng.choice([0, 0, 1]),
                stop_token_ids=rng.sample(range(VOCAB), 3),
                ignore_eos=rng.random() < 0.3,
                logprobs=rng.choice([None, None, 1]),
                prompt_logprobs=rng.choice([None, None, None, 1]),
            )
        )
    return requests


def check_outcome(req: EngineRequest, outcome: Outcome, longest: int) -> None:
    tokens, reason = brute_force(req, longest)
    assert outcome.token_ids == tokens
    assert outcome.final is not None and outcome.final.finish_reason is reason
    if req.sampling.logprobs is not None:
        assert [entry.token_ids[0] for entry in outcome.logprobs] == tokens
    assert outcome.first is not None
    if req.sampling.prompt_logprobs is None:
        assert outcome.first.prompt_logprobs is None
    else:
        found = outcome.first.prompt_logprobs
        assert found is not None and found[0] is None and outcome.first.cached_tokens == 0
        assert [e.token_ids[0] for e in found[1:] if e] == req.prompt_token_ids[1:]


@settings(max_examples=400, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    layers=st.sampled_from(["CCCF", "CCCF", "F", "C", "CF", "CCCFCCCF", "W", "WF", "CWF", "WWWWWF", "WCWCFF"]),
    chunk=st.integers(1, 21),
    window=st.integers(1, 21),
    block_size=st.integers(1, 8),
    stages=st.integers(1, 4),
    depth=st.integers(0, 7),
    batch_tokens=st.sampled_from([1, 3, 7, 16, 64, 1000]),
    chunk_cap=st.sampled_from([None, None, 1, 5]),
    spare_pages=st.sampled_from([-20, 0, 3, 20, 400]),
    caching=st.booleans(),
    policy=st.sampled_from(["fcfs", "priority"]),
    immediate=st.booleans(),
    drafting=st.booleans(),
)
def test_random_layouts(
    seed: int, layers: str, chunk: int, window: int, block_size: int, stages: int, depth: int, batch_tokens: int,
    chunk_cap: int | None, spare_pages: int, caching: bool, policy: str, immediate: bool,
    drafting: bool,
) -> None:  # fmt: skip
    rng = random.Random(seed)
    config = engine_config(
        tiny_model(layers, chunk, window=window), block_size=block_size, stages=stages, caching=caching,
        max_model_len=48, max_num_seqs=rng.randint(1, 6), max_num_batched_tokens=batch_tokens,
        max_prefill_chunk=chunk_cap, steps_in_flight=depth, policy=policy,
    )  # fmt: skip
    groups = len(config.model.kv_groups)
    # At 0 spare pages one longest sequence fits even if nothing is released; below that, only shorter ones do.
    pages = 1 + max(3 * groups, groups * -(-48 // block_size) + spare_pages)
    ranks = FakeRanks(config, pages, rng=None if immediate else rng, immediate=immediate)
    drafter = FakeDrafter(rng) if drafting else None
    core = core_over(config, ranks, drafter)
    longest_prompt = min(40, core.scheduler.longest_sequence - 1)
    requests = random_requests(rng, 14, longest_prompt)
    if drafter is not None:
        drafter.learn(requests, core.scheduler.longest_sequence)
    outcomes = run_to_end(core, requests)
    for req in requests:
        check_outcome(req, outcomes[req.request_id], core.scheduler.longest_sequence)
    assert core.stats().kv_pages_used == 0
    ranks.shutdown()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    layers=st.sampled_from(["CCCF", "CWWF"]),
    stages=st.integers(1, 3),
    pages=st.integers(30, 90),
    drafting=st.booleans(),
)
def test_random_arrivals_aborts_and_cache_resets(
    seed: int, layers: str, stages: int, pages: int, drafting: bool
) -> None:
    rng = random.Random(seed)
    config = engine_config(tiny_model(layers, 10), block_size=3, stages=stages, max_model_len=64, max_waiting=1000)
    ranks = FakeRanks(config, pages, rng=rng)
    drafter = FakeDrafter(rng) if drafting else None
    core = core_over(config, ranks, drafter)
    requests = random_requests(rng, 25, 20)
    if drafter is not None:
        drafter.learn(requests, core.scheduler.longest_sequence)
    outcomes: dict[str, Outcome] = {}
    aborted: set[str] = set()
    pending = requests.copy()
    while pending or core.has_work:
        if pending and rng.random() < 0.4:
            core.add(pending.pop())
        if rng.random() < 0.05:
            victim = rng.choice(requests).request_id
            if victim not in outcomes or outcomes[victim].final is None:
                aborted.add(victim)
            core.abort([victim, "unknown"])
        if rng.random() < 0.03:
            core.reset_prefix_cache()
        run_step(core, outcomes)
    for req in requests:
        if req.request_id not in aborted:
            check_outcome(req, outcomes[req.request_id], core.scheduler.longest_sequence)
        elif req.request_id in outcomes:  # what came before the abort was right
            tokens, _ = brute_force(req, core.scheduler.longest_sequence)
            assert outcomes[req.request_id].token_ids == tokens[: len(outcomes[req.request_id].token_ids)]
    assert core.stats().kv_pages_used == 0
    ranks.shutdown()


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_200_mixed_requests_with_random_aborts_leave_no_page(stages: int) -> None:
    rng = random.Random(stages)
    config = engine_config(tiny_model("CCCF", 12), stages=stages, max_num_seqs=32, max_num_batched_tokens=64)
    ranks = FakeRanks(config, 400, rng=rng)
    core = core_over(config, ranks)
    requests = random_requests(rng, 200, 60)
    outcomes: dict[str, Outcome] = {}
    for req in requests:
        core.add(req)
    aborted = {req.request_id for req in rng.sample(requests, 60)}
    queue = sorted(aborted)
    while core.has_work:
        if queue and rng.random() < 0.3:
            core.abort([queue.pop()])
        run_step(core, outcomes)
    assert core.stats().kv_pages_used == core.stats().running == core.stats().waiting == 0
    for req in requests:
        if req.request_id not in aborted:
            check_outcome(req, outcomes[req.request_id], core.scheduler.longest_sequence)
    ranks.shutdown()


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
@pytest.mark.parametrize("stages", [1, 2])
def test_preemption_with_tokens_still_unseen_loses_and_repeats_nothing(depth: int, stages: int) -> None:
    rng = random.Random(depth)
    config = engine_config(tiny_model("CCCF", 8), block_size=2, stages=stages, steps_in_flight=depth, caching=False)
    ranks = FakeRanks(config, 4 * 32 + 1, rng=rng)
    core = core_over(config, ranks)
    requests = [request(f"r{i}", [i + 3] * 5, max_tokens=50, ignore_eos=True) for i in range(6)]
    outcomes = run_to_end(core, requests)
    assert core.stats().preemptions > 5
    for req in requests:
        check_outcome(req, outcomes[req.request_id], core.scheduler.longest_sequence)
        assert outcomes[req.request_id].final.finish_reason is FinishReason.LENGTH  # type: ignore[union-attr]
    ranks.shutdown()
