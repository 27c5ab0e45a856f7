"""Drafts, right, wrong or partly right, change how many steps it takes and nothing else."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from remuda.protocol.request import TokenLogprobs
from remuda.protocol.sampling import SamplingParams
from remuda.protocol.step import NewSequence, StepPlan, StepResult
from remuda.worker.drafts import Drafts
from tests.worker.fakes import engine_config, model_config
from tests.worker.runners import Order, make_workers, one_by_one, overlapped, run_all

VOCAB = 50
LENGTH = 24  # tokens of each output
SAMPLING = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0, seed=5),
    SamplingParams(temperature=0.0, repetition_penalty=1.7, logprobs=2),
    SamplingParams(temperature=0.8, seed=6, presence_penalty=1.0, frequency_penalty=0.5, top_k=9),
    SamplingParams(temperature=1.2, seed=7, min_tokens=15, eos_token_ids=list(range(40)), logprobs=0),
    SamplingParams(temperature=0.0, bad_words_token_ids=[[3], [7, 9], [11, 2]]),
]


@dataclass
class Resident:
    """A sequence as the engine would know it: its output so far, and drafts that it has not been told are wrong."""

    slot: int
    prompt: list[int]
    future: list[int]  # the whole output
    pages: list[list[int]]
    outputs: int = 0
    rejected: int = 0
    expected: list[list[int]] = field(default_factory=list)  # the run of each step that it takes part in


def residents(groups: int, futures: list[list[int]]) -> list[Resident]:
    rng = random.Random(1)
    found = []
    for slot in range(len(SAMPLING)):
        prompt = [rng.randrange(VOCAB) for _ in range(3 + slot)]
        first = 1 + slot * groups * 10
        pages = [list(range(first + g * 10, first + (g + 1) * 10)) for g in range(groups)]
        found.append(Resident(slot, prompt, futures[slot] if futures else [], pages))
    return found


def admission(step: int, rows: list[Resident]) -> StepPlan:
    new = [NewSequence(r.slot, r.prompt, len(r.prompt), 0, r.pages, SAMPLING[r.slot]) for r in rows]
    for row in rows:
        row.outputs = 1
        row.expected.append(row.future[:1])
    return StepPlan(step, [r.slot for r in rows], [len(r.prompt) for r in rows], new=new)


def drafting(step: int, rows: list[Resident], rng: random.Random) -> StepPlan:
    """A step of `rows`, each with up to four drafts of which some are wrong."""
    drafts, rejected = [], []
    for row in rows:
        if row.rejected:
            rejected.append((row.slot, row.rejected))
        proposed = row.future[row.outputs :][: rng.randint(0, 4)]
        if proposed and rng.random() < 0.6:
            wrong = rng.randrange(len(proposed))
            proposed[wrong] = (proposed[wrong] + rng.randint(1, VOCAB - 1)) % VOCAB
        right = 0
        while right < len(proposed) and proposed[right] == row.future[row.outputs + right]:
            right += 1
        row.expected.append(row.future[row.outputs : row.outputs + right + 1])
        row.outputs += right + 1
        row.rejected = len(proposed) - right
        drafts.append(proposed)
    counts = [1 + len(proposed) for proposed in drafts]
    return StepPlan(step, [r.slot for r in rows], counts, drafts=drafts if any(drafts) else [], rejected=rejected)


def plain_run(runner: Any) -> tuple[list[list[int]], list[list[TokenLogprobs | None]]]:
    """Outputs without drafts, all sequences in every step; and their log-probabilities."""
    config = engine_config(model_config())
    rows = residents(len(config.model.kv_groups), [])
    slots = [row.slot for row in rows]
    plans = [admission(0, rows), *(StepPlan(step, slots, [1] * len(slots)) for step in range(1, LENGTH))]
    results = run_all(make_workers(config, runner), plans)
    tokens = [[result.tokens[slot] for result in results] for slot in slots]
    return tokens, [[result.logprobs[slot] for result in results] for slot in slots]


@pytest.mark.parametrize("stages", [(4,), (2, 2), (1, 2, 1)], ids=str)
@pytest.mark.parametrize("order", [one_by_one, overlapped])
def test_the_output_is_that_without_drafts(stages: tuple[int, ...], order: Order, runner: Any) -> None:
    futures, logprobs = plain_run(runner)
    rng = random.Random(len(stages))
    config = engine_config(model_config(), stages)
    everyone = residents(len(config.model.kv_groups), futures)
    halves = everyone[::2], everyone[1::2]  # in turn: who drafts waits for what becomes of it
    plans, who = [], []
    for step in range(60):
        rows = [row for row in halves[step % 2] if row.outputs < LENGTH - 5]
        if rows:
            plans.append(drafting(step, rows, rng) if step > 1 else admission(step, rows))
            who.append(rows)
    results = run_all(make_workers(config, runner), plans, order)
    taken = {row.slot: 0 for row in everyone}
    for plan, rows, result in zip(plans, who, results, strict=True):
        assert bool(result.runs) == bool(plan.drafts)
        for row, run, entries in zip(rows, *runs_of(result, len(rows)), strict=True):
            start = taken[row.slot]
            assert run == row.expected.pop(0) == row.future[start : start + len(run)]
            assert_close(entries, logprobs[row.slot][start : start + len(run)])
            taken[row.slot] += len(run)
    assert len(plans) < 30 and all(count >= LENGTH - 5 for count in taken.values())


def runs_of(result: StepResult, rows: int) -> tuple[list[list[int]], list[list[TokenLogprobs | None]]]:
    tokens = iter(result.tokens)
    entries = iter(result.logprobs or [None] * len(result.tokens))
    counts = result.runs or [1] * rows
    runs = [([next(tokens) for _ in range(n)], [next(entries) for _ in range(n)]) for n in counts]
    return [run for run, _ in runs], [found for _, found in runs]


def assert_close(found: list[TokenLogprobs | None], expected: list[TokenLogprobs | None]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert (one.token_ids, one.rank) == (other.token_ids, other.rank)
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_a_run_ends_at_the_first_draft_that_is_wrong() -> None:
    known_S, slots_S, samples = np.array([10, 20, 30]), np.array([4, 5, 6]), np.array([True, False, True, True])
    drafts = Drafts.of([[7, 8], [], [], [9]], samples, slots_S, known_S)
    assert drafts.slots_D.tolist() == [4, 4, 6] and drafts.positions_D.tolist() == [10, 11, 30]
    assert drafts.verify(np.array([7, 8, 1, 2, 9, 3])) == ([0, 1, 2, 3, 4, 5], [3, 1, 2])
    assert drafts.verify(np.array([7, 5, 1, 2, 9, 3])) == ([0, 1, 3, 4, 5], [2, 1, 2])
    assert drafts.verify(np.array([0, 8, 1, 2, -1, 3])) == ([0, 3, 4], [1, 1, 1])
