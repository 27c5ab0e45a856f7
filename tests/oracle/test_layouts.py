"""Greedy tokens equal to the oracle's, and log-probabilities within its limits, under every layout and setting."""

from __future__ import annotations

import pytest

from tests.oracle import kit
from tests.oracle.compare import MAX_LOGPROB_DIFFERENCE, MEAN_LOGPROB_DIFFERENCE, answers, engine_of, judge
from tests.oracle.matrix import CASES, Case


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_equals_the_oracle(case: Case) -> None:
    expected = kit.reference(case.preset)
    with engine_of(case) as llm:
        rounds = [answers(llm, case.preset) for _ in range(2 if case.prefix_cache else 1)]
        stats = llm.stats()
    for got in rounds:  # the second round finds its prompts in the prefix cache
        verdict = judge(got, expected)
        assert not verdict.wrong
        assert verdict.largest <= MAX_LOGPROB_DIFFERENCE
        assert verdict.mean <= MEAN_LOGPROB_DIFFERENCE
    assert stats.kv_pages_used == 0
    if case.starve_cache:
        assert stats.preemptions > 0
    if case.prefix_cache and not case.starve_cache:
        assert stats.prefix_hits_tokens > 0
