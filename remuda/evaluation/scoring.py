"""Is a reply right? Lenient about form (spaces, working, code fences), strict about content."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from typing import Any

from remuda.evaluation.problem import Problem, Scoring

Call = tuple[str, dict[str, Any]]


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
    return parse_calls(reply) == parse_calls(problem.answer) != []


def _says_demo(problem: Problem, reply: str) -> bool:
    return "demonstration model" in reply.lower() and len(reply) < 600


def parse_calls(text: str) -> list[Call]:
    """Calls in a reply, pythonic `[f(a=1)]` or JSON `{"name": ..., "parameters": ...}`; [] if it holds none."""
    text = text.replace("<|python_start|>", "").replace("<|python_end|>", "").strip()
    if text.startswith("{"):
        return _json_calls(text)
    try:
        body = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return []
    nodes = body.elts if isinstance(body, ast.List) else [body]
    calls = [_pythonic_call(node) for node in nodes]
    return [call for call in calls if call is not None] if None not in calls else []


def _json_calls(text: str) -> list[Call]:
    try:
        value = json.loads(text)
    except ValueError:
        return []
    name, arguments = value.get("name"), value.get("parameters", value.get("arguments"))
    return [(name, arguments)] if isinstance(name, str) and isinstance(arguments, dict) else []


def _pythonic_call(node: ast.expr) -> Call | None:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
        return None
    try:
        return node.func.id, {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
    except ValueError:
        return None


_RULES: dict[Scoring, Callable[[Problem, str], bool]] = {
    Scoring.TEXT: _same_text,
    Scoring.NUMBER: _same_number,
    Scoring.VALUE: _has_value,
    Scoring.JSON: _same_json,
    Scoring.CALL: _same_calls,
    Scoring.DEMO: _says_demo,
}
