"""Hermes' calls, which Qwen 2.5 and 3 write too: `<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>`."""

from __future__ import annotations

from remuda.text.parsers.calls import ToolCallParser


class HermesToolCalls(ToolCallParser):
    marks = ("<tool_call>", "</tool_call>")
    openers = "[{"
    needs_arguments = False

    def _may_begin(self, char: str, expected: bool) -> bool:
        return expected and char in self.openers

    def _expected_after(self, blank: str | None) -> bool:
        return False
