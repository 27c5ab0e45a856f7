"""Is a reply right? Lenient about form (spaces, working, code fences), strict about content."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from remuda.evaluation.problem import Problem, Scoring
from remuda.text.parsers.llama import LlamaToolCalls


def is_right(problem: Problem, reply: str) -> bool:
    return _RULES[problem.scoring](problem, reply)


def _same_text(problem: Problem, reply: str) -> bool:
    return _plain(reply) == _plain(problem.answer)


def _plain(text: str) -> str:
    return " ".join(text.split()).removesuffix(".").strip('"')


def _same_number(problem: Problem, reply: str) -> bool:
    expected, given = (re.findall(r"-?\d+", text.replace(",", "")) for text in (problem.answer, reply))
    return bool(given) and int(given[-1]) == int(expected[-1])


def _has_value(problem: Problem, reply: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(problem.expected)}(?!\w)", reply) is not None


def _same_json(problem: Problem, reply: str) -> bool:
    text = re.sub(r"^```(?:json)?|```$", "", reply.strip()).strip()
    try:
        return bool(json.loads(text) == json.loads(problem.answer))
    except ValueError:
        return False


def _same_calls(problem: Problem, reply: str) -> bool:
    return _calls(reply) == _calls(problem.answer) != []


def _calls(text: str) -> list[tuple[str, Any]]:
    """[] if anything stands beside the calls, or one of them is cut."""
    content, calls = LlamaToolCalls.parse(text)
    try:
        return [] if content.strip() else [(call.name, json.loads(call.arguments)) for call in calls]
    except ValueError:
        return []


def _says_demo(problem: Problem, reply: str) -> bool:
    return "demonstration model" in reply.lower() and len(reply) < 600


_RULES: dict[Scoring, Callable[[Problem, str], bool]] = {
    Scoring.TEXT: _same_text,
    Scoring.NUMBER: _same_number,
    Scoring.VALUE: _has_value,
    Scoring.JSON: _same_json,
    Scoring.CALL: _same_calls,
    Scoring.DEMO: _says_demo,
}
