"""Stages of a pipeline stay busy: equal decode cohorts, and prompts that flow through in even portions."""

from __future__ import annotations

import random

import pytest

from remuda.engine.core import EngineCore
from remuda.protocol.request import EngineRequest
from tests.engine.fakes import core_over, engine_config, request, tiny_model
from tests.engine.virtual_pipeline import StageCost, VirtualPipeline, serve

STAGES = 4


def pipeline_of(cost: StageCost, **scheduler: object) -> tuple[EngineCore, VirtualPipeline]:
    config = engine_config(
        tiny_model("CCCF", 256), block_size=16, stages=STAGES, caching=False, max_model_len=16384,
        **{"max_num_seqs": 256, "max_num_batched_tokens": 2048, "max_waiting": 4096} | scheduler,
    )  # fmt: skip
    pipeline = VirtualPipeline(200_000, STAGES, cost)
    return core_over(config, pipeline), pipeline


def measured(cost: StageCost, prompt: tuple[int, int], outputs: int, gap_ms: float, long: float = 0.0) -> list[float]:
    rng = random.Random(0)
    core, pipeline = pipeline_of(cost)
    for i in range(64):
        core.add(request(f"first{i}", [5] * 32, max_tokens=rng.randint(1, outputs), ignore_eos=True))

    def arrivals(number: int) -> EngineRequest:
        length = rng.randint(1024, 8192) if rng.random() < long else rng.randint(*prompt)
        return request(f"r{number}", [5] * length, max_tokens=outputs, ignore_eos=True)

    serve(core, pipeline, arrivals, gap_ms, until_ms=30_000)
    return pipeline.utilisation(2_000, 30_000)


def test_steady_decodes_keep_every_stage_busy() -> None:
    # 64 running: each produces a token per 20 ms round, so 200 tokens take 4 s
    for share in measured(StageCost(), (16, 64), outputs=200, gap_ms=4000 / 64):
        assert share >= 0.95


@pytest.mark.parametrize("prefill_token_ms", [0.0, 0.005, 0.02])
def test_long_prompts_mixed_in_leave_few_bubbles(prefill_token_ms: float) -> None:
    cost = StageCost(5.0, 0.0, prefill_token_ms)
    for share in measured(cost, (16, 64), outputs=200, gap_ms=4000 / 64 * 1.5, long=0.1):
        assert share >= 0.90
