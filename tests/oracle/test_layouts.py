"""Greedy tokens equal to the oracle's, and log-probabilities within its limits, under every layout and setting."""

from __future__ import annotations

import pytest

from tests.oracle import kit
from tests.oracle.compare import answers, engine_of, faults, judge
from tests.oracle.matrix import CASES, Case


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_equals_the_oracle(case: Case) -> None:
    expected = kit.reference(case.preset)
    rounds = 2 if case.prefix_cache else 1  # the second round finds its prompts in the prefix cache
    with engine_of(case) as llm:
        verdicts = [judge(answers(llm, case.preset), expected) for _ in range(rounds)]
        stats = llm.stats()
    assert not faults(case, verdicts, stats)
