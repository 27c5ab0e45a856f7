"""Workers run random plans and must give, token for token, what a model without cache, plans or stages gives.

Every test runs on every runner: a CPU's; one whose device computes beside its host, which sees to its inputs and
outputs; one whose device takes those over as well, and does nothing before it is waited for (`async_device.py`); and
that for GPUs, with the processor in the place of one (`host_device.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from remuda.config.engine import EngineConfig
from remuda.protocol.errors import RemudaError
from remuda.protocol.sampling import SamplingParams
from remuda.protocol.step import NewSequence, StepPlan
from tests.worker.fakes import brute_force_logits, engine_config, model_config
from tests.worker.planner import Planned, RandomPlanner
from tests.worker.runners import Order, make_workers, one_by_one, overlapped, run_all


def greedy(config: EngineConfig) -> Callable[[list[int]], int]:
    return lambda tokens: _next_token(config.model.num_layers, tuple(tokens))


@cache  # every runner meets the same sequences
def _next_token(layers: int, tokens: tuple[int, ...]) -> int:
    model = model_config({2: "FF", 3: "FFF", 4: "CCCF"}[layers])
    return int(brute_force_logits(model, tokens)[-1].argmax())


@pytest.mark.parametrize("stages", [(4,), (2, 2), (1, 2, 1)], ids=str)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("order", [one_by_one, overlapped])
def test_random_plans_equal_brute_force(stages: tuple[int, ...], seed: int, order: Order, runner: Any) -> None:
    config = engine_config(model_config(), stages)
    planner = RandomPlanner(seed, slots=6, groups=len(config.model.kv_groups), block_size=4, pages=400, max_len=40)
    steps: list[tuple[StepPlan, list[Planned]]] = [planner.next_plan() for _ in range(30)]
    results = run_all(make_workers(config, runner), [plan for plan, _ in steps], order)
    next_token = greedy(config)
    checked = 0
    for (plan, sampling), result in zip(steps, results, strict=True):
        assert result.step == plan.step and len(result.tokens) == len(sampling)
        for sequence, token in zip(sampling, result.tokens, strict=True):
            assert token == next_token(sequence.tokens)
            sequence.tokens.append(token)
            checked += 1
    assert checked > 30


def test_a_device_has_its_next_step_before_the_host_waits_for_the_last(runner: Any) -> None:
    (worker,) = make_workers(engine_config(model_config("FF")), runner)
    plans = [StepPlan(0, [0], [3], new=[admit(0, [1, 2, 3], [[1, 2]])]), StepPlan(1, [0], [1]), StepPlan(2, [0], [1])]
    most = 0
    for _ in overlapped(worker, plans):
        most = max(most, len(worker.launched) + 1)
    assert most == worker.runner.max_launched


def admit(slot: int, tokens: list[int], pages: list[list[int]], prompt_len: int = 0, **sampling: object) -> NewSequence:
    params = SamplingParams(**{"temperature": 0.0, **sampling})  # type: ignore[arg-type]
    return NewSequence(slot, tokens, prompt_len or len(tokens), 0, pages, params)


def test_a_slot_reused_while_its_token_is_on_the_way_keeps_the_new_tokens(runner: Any) -> None:
    config = engine_config(model_config("FF"), (1, 1))
    first, second = [3, 1, 4, 1, 5], [9, 2, 6, 5, 3, 5]
    plans = [
        StepPlan(0, [0], [5], new=[admit(0, first, [[1, 2]])]),
        StepPlan(1, [0], [6], released=[0], new=[admit(0, second, [[3, 4]])]),
        StepPlan(2, [0], [1]),
    ]
    results = run_all(make_workers(config, runner), plans)
    tokens = list(second)
    for result in results[1:]:
        assert result.tokens == [greedy(config)(tokens)]
        tokens += result.tokens


def test_prefix_that_is_cached_is_not_computed_again(runner: Any) -> None:
    config = engine_config(model_config("FF"))
    (worker,) = make_workers(config, runner)
    prompt = list(range(10, 23))
    worker.execute(StepPlan(0, [0], [13], new=[admit(0, prompt, [[1, 2, 3, 4]])]))
    shared = NewSequence(1, [*prompt[:8], 7, 7], 10, 8, [[1, 2, 9]], SamplingParams(temperature=0.0))
    result = worker.execute(StepPlan(1, [1], [2], new=[shared]))
    assert result is not None and result.tokens == [greedy(config)([*prompt[:8], 7, 7])]


def test_prompt_logprobs_are_those_of_the_whole_prompt_whatever_the_chunks(runner: Any) -> None:
    config = engine_config(model_config())
    prompt = [5, 6, 7, 8, 9, 10, 11]
    pages = [[1 + 2 * g, 2 + 2 * g] for g in range(len(config.model.kv_groups))]
    expected = torch.log_softmax(brute_force_logits(config.model, prompt), dim=1)
    (worker,) = make_workers(config, runner)
    found = {}
    new = [admit(0, prompt, pages, prompt_logprobs=2)]
    for step, count in enumerate((3, 1, 3)):
        result = worker.execute(StepPlan(step, [0], [count], new=new))
        new = []
        assert result is not None
        for part in result.prompt_logprobs:
            found.update({part.first + i: entry for i, entry in enumerate(part.entries)})
    assert sorted(found) == [1, 2, 3, 4, 5, 6]
    for position, entry in found.items():
        row = expected[position - 1]
        assert entry.token_ids[0] == prompt[position]
        assert entry.logprobs == pytest.approx(row[entry.token_ids].tolist(), abs=1e-5)
        assert entry.token_ids[1:] == row.topk(2).indices.tolist()


def test_a_row_without_finite_logits_gives_minus_one_and_spares_the_others(
    monkeypatch: pytest.MonkeyPatch, runner: Any
) -> None:
    config = engine_config(model_config("FF"))
    (worker,) = make_workers(config, runner)
    whole = worker.runner.model.logits

    def poisoned(hidden_SH: torch.Tensor) -> torch.Tensor:
        logits_SV = whole(hidden_SH)
        logits_SV[0, 3], logits_SV[1, 3] = float("nan"), float("inf")
        return logits_SV

    monkeypatch.setattr(worker.runner.model, "logits", poisoned)
    new = [admit(slot, [slot + 1] * 3, [[1 + slot]]) for slot in range(3)]
    for step in range(2):  # also the step after, whose input would be the missing token
        plan = StepPlan(step, [0, 1, 2], [3 - 2 * step] * 3, new=[] if step else new)
        result = worker.execute(plan)
        assert result is not None
        assert result.tokens[:2] == [-1, -1] and result.tokens[2] >= 0


def test_a_plan_without_rows_is_answered(monkeypatch: pytest.MonkeyPatch, runner: Any) -> None:
    config = engine_config(model_config("FF"), (1, 1))
    results = run_all(make_workers(config, runner), [StepPlan(0, [], [], released=[0]), StepPlan(1, [], [])])
    assert [result.step for result in results] == [0, 1]


def test_the_self_test_passes_every_stage_and_leaves_no_trace(runner: Any) -> None:
    config = engine_config(model_config("FFF"), (1, 1, 1))
    workers = make_workers(config, runner)
    threads = [threading.Thread(target=worker.self_test, daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    prompt = [8, 7, 6, 5, 4]
    results = run_all(workers, [StepPlan(0, [0], [5], new=[admit(0, prompt, [[1, 2]])])])
    assert results[0].tokens == [greedy(config)(prompt)]


def test_the_self_test_refuses_a_model_without_finite_logits(monkeypatch: pytest.MonkeyPatch, runner: Any) -> None:
    config = engine_config(model_config("FF"))
    (worker,) = make_workers(config, runner)
    monkeypatch.setattr(worker.runner.model, "logits", lambda hidden: torch.full((len(hidden), 50), float("nan")))
    with pytest.raises(RemudaError, match="not finite"):
        worker.self_test()
