"""Llama 3's and 4's calls: pythonic `[f(a=1), g(b="x")]` or `f(a=1)`, and JSON `{"name": "f", "parameters": {"a": 1}}`.

Models of the family mix these forms, and put marks around them or not, so one parser reads them all. A call in brackets
or braces may stand anywhere; a bare `f(a=1)` at the beginning of a line or behind another call.
"""

from __future__ import annotations

import json

from remuda.text.parsers.calls import ToolCallParser
from remuda.text.parsers.literals import read_comma, read_object, read_value
from remuda.text.parsers.source import Reading, Unreadable


class LlamaToolCalls(ToolCallParser):
    marks = ("<|python_start|>", "<|python_end|>", "<|python_tag|>")
    openers = "[{"

    def _may_begin(self, char: str, expected: bool) -> bool:
        return char in self.openers or (expected and (char.isalnum() or char == "_"))

    def _expected_after(self, blank: str | None) -> bool:
        return blank is None or "\n" in blank

    def _read_named(self) -> Reading[None]:
        source = self._source
        self._identify((yield from self._read_name()))
        if (yield from source.take()) != "(":
            raise Unreadable
        if (yield from source.visible()) == "{":  # f({"a": 1})
            yield from read_object(source, self._write)
            yield from source.expect(")")
            self._write("")
            return
        before = "{"
        while (yield from source.visible()) != ")":
            key = yield from self._read_name()
            yield from source.expect("=")
            self._unsent.append(f"{before}{json.dumps(key, ensure_ascii=False)}: ")
            before = ", "
            yield from read_value(source, self._write)
            yield from read_comma(source, ")")
        source.skip(1)
        self._write("{}" if before == "{" else "}")
