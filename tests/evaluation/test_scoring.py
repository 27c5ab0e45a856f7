"""Scoring is lenient about form and strict about content."""

from __future__ import annotations

import pytest

from remuda.evaluation.problem import Problem, Scoring
from remuda.evaluation.scoring import is_right


def problem(scoring: Scoring, answer: str, expected: str = "") -> Problem:
    return Problem("skill", "variant", [{"role": "user", "content": "?"}], answer, scoring, expected)


@pytest.mark.parametrize(
    "scoring, answer, right, wrong",
    [
        (Scoring.TEXT, "a, b", ["a, b", " a,  b\n", "a, b.", '"a, b"'], ["b, a", "a b", "A, b"]),
        (Scoring.NUMBER, "12 + 30 = 42", ["42", "The result is 42.", "12 + 30 = 42"], ["43", "42 + 1", "forty-two"]),
        (Scoring.JSON, '{"a": 1, "b": "x"}', ['{"b": "x", "a": 1}', '```json\n{"a": 1, "b": "x"}\n```'],
         ['{"a": "1", "b": "x"}', '{"a": 1}', "a=1"]),
        (Scoring.CALL, '[f(a=1, b="x")]', ['f(b="x", a=1)', '{"name": "f", "parameters": {"a": 1, "b": "x"}}',
                                           "<|python_start|>[f(a=1, b='x')]<|python_end|>"],
         ["[g(a=1)]", '[f(a=1, b="x"), f(a=1, b="x")]', "[f(1)]"]),
        (Scoring.DEMO, "", ["I am a small demonstration model."], ["Paris.", "demonstration model " * 100]),
    ],
)  # fmt: skip
def test_rules(scoring: Scoring, answer: str, right: list[str], wrong: list[str]) -> None:
    asked = problem(scoring, answer)
    assert [is_right(asked, reply) for reply in right] == [True] * len(right)
    assert [is_right(asked, reply) for reply in wrong] == [False] * len(wrong)


def test_a_value_is_a_whole_word() -> None:
    asked = problem(Scoring.VALUE, "The code is 4821.", expected="4821")
    assert is_right(asked, "4821") and is_right(asked, "It is 4821, I think")
    assert not is_right(asked, "14821") and not is_right(asked, "482")
