"""Tool calls as models write them."""

from __future__ import annotations

import pytest

from remuda.text.parsers.tool_calls import Llama4ToolCalls, ToolCall


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[f(a=1, b="x")]', [ToolCall("f", {"a": 1, "b": "x"})]),
        ("f(a=[1, 2], b={'c': None})", [ToolCall("f", {"a": [1, 2], "b": {"c": None}})]),
        ("[f(), g(x=-1.5)]", [ToolCall("f", {}), ToolCall("g", {"x": -1.5})]),
        ("<|python_start|>[f(a=True)]<|python_end|>", [ToolCall("f", {"a": True})]),
        ('{"name": "f", "parameters": {"a": 1}}', [ToolCall("f", {"a": 1})]),
        (' {"name": "f", "arguments": {}}\n', [ToolCall("f", {})]),
    ],
)
def test_calls(text: str, expected: list[ToolCall]) -> None:
    assert Llama4ToolCalls().parse(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "[", "f", "f(x)", "f(**a)", "[f(a=b)]", "[f(a=1), g(x)]", "f(a=__import__('os'))", "{}", '{"name": 1}',
     "[1, 2]", "(" * 500, "[]", '{"a":' * 50_000, "I would call f(a=1)."],
)  # fmt: skip
def test_what_is_no_call_is_none(text: str) -> None:
    assert Llama4ToolCalls().parse(text) == []
