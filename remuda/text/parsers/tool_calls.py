"""Llama 4's tool calls: pythonic `[f(a=1), g(b="x")]`, or JSON `{"name": "f", "parameters": {"a": 1}}`."""

from __future__ import annotations

import ast
import json
from typing import Any

import msgspec

_MARKS = ("<|python_start|>", "<|python_end|>")


class ToolCall(msgspec.Struct, frozen=True):
    name: str
    arguments: dict[str, Any]


class Llama4ToolCalls:
    """Reads a whole reply. Nothing in it is ever evaluated: arguments are literals."""

    def parse(self, text: str) -> list[ToolCall]:
        """Its calls; [] if it is anything but calls, a malformed one included."""
        for mark in _MARKS:
            text = text.replace(mark, "")
        text = text.strip()
        return _from_json(text) if text.startswith("{") else _from_python(text)


def _from_json(text: str) -> list[ToolCall]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return []
    name, arguments = value.get("name"), value.get("parameters", value.get("arguments"))
    return [ToolCall(name, arguments)] if isinstance(name, str) and isinstance(arguments, dict) else []


def _from_python(text: str) -> list[ToolCall]:
    try:
        body = ast.parse(text, mode="eval").body
        nodes = body.elts if isinstance(body, ast.List) else [body]
        return [_call(node) for node in nodes]
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return []


def _call(node: ast.expr) -> ToolCall:
    """Raises ValueError for anything but `name(key=literal, ...)`."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
        raise ValueError("no call by keywords")
    arguments = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError("no name for **")
        arguments[keyword.arg] = ast.literal_eval(keyword.value)
    return ToolCall(node.func.id, arguments)
