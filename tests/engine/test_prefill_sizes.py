"""Prompts are cut so that consecutive micro-batches of a pipeline take equal time."""

from __future__ import annotations

import msgspec

from remuda.config.model import ModelConfig
from remuda.engine.prefill import MIN_CHUNK, PrefillSizer, doubling_context
from remuda.protocol.step import StepPlan
from tests.engine.fakes import CountingRanks, FakeRanks, core_over, engine_config, request, run_step, tiny_model

MODEL = tiny_model("CCCF", 64)


def plans_for(stages: int, prompt_lens: list[int], model: ModelConfig = MODEL, **scheduler: object) -> list[StepPlan]:
    config = engine_config(model, stages=stages, max_model_len=100_000, caching=False, **scheduler)
    core = core_over(config, CountingRanks(200_000))
    for number, length in enumerate(prompt_lens):
        core.add(request(f"r{number}", [5] * length, max_tokens=1))
    while core.has_work:
        core.step(block=False)
    return core.executor.plans  # type: ignore[attr-defined]


def test_without_a_pipeline_a_step_is_filled() -> None:
    plans = plans_for(1, [5000], max_num_batched_tokens=2048)
    assert [plan.counts for plan in plans] == [[2048], [2048], [904]]


def test_prompts_share_a_step_and_one_prompt_can_be_capped() -> None:
    plans = plans_for(1, [10, 20, 100], max_num_batched_tokens=64)
    assert [plan.counts for plan in plans] == [[10, 20, 34], [64], [2]]
    plans = plans_for(1, [40, 40], max_num_batched_tokens=64, max_prefill_chunk=16)
    assert [plan.counts for plan in plans] == [[16, 16], [16, 16], [8, 8]]


def test_chunks_shrink_as_the_context_grows_and_cost_the_same() -> None:
    plans = plans_for(4, [60_000], max_num_batched_tokens=1024)
    counts = [plan.counts[0] for plan in plans]
    assert counts == sorted(counts, reverse=True) and counts[0] > 2 * counts[-2]
    sizer = PrefillSizer(MODEL, 4)
    starts = [sum(counts[:i]) for i in range(len(counts))]
    costs = [sizer.cost(start, count) for start, count in zip(starts, counts, strict=True) if count > MIN_CHUNK]
    assert max(costs[:-1]) <= 1024 and min(costs[:-1]) >= 1024 * 0.95


def test_a_burst_is_spread_evenly_over_the_micro_batches() -> None:
    wide = msgspec.structs.replace(MODEL, hidden_size=4096, intermediate_size=16384)  # context hardly counts
    plans = plans_for(4, [1000] * 8, model=wide, max_num_batched_tokens=8192, max_num_seqs=16)
    totals = [sum(plan.counts) for plan in plans]
    assert len(totals) <= 17 and max(totals) <= 500 and min(totals[:-1]) >= 480  # 8000 over 16 micro-batches


def test_chunks_of_one_prompt_follow_each_other_without_waiting() -> None:
    config = engine_config(MODEL, stages=4, max_model_len=4096, max_num_batched_tokens=512)
    ranks = FakeRanks(config, 5000)
    core = core_over(config, ranks)
    core.add(request("long", [5] * 3000, max_tokens=1))
    ranks.poll = lambda: []  # type: ignore[method-assign]  # nothing comes back
    run_step(core, {})
    assert len(ranks.plans) == 5 and all(plan.slots == [0] for plan in ranks.plans)
    ranks.shutdown()


def test_attention_doubles_the_cost_of_a_token_at_a_plausible_context() -> None:
    # 1 of 4 layers reads everything: 4 * 64 per position against 4 * (2*64*192 + 6*64*128) for the products
    assert round(doubling_context(MODEL)) == 4 * (2 * 64 * 192 + 6 * 64 * 128) // (4 * 64)
