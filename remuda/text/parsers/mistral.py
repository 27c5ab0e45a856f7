"""Mistral's calls: `[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}]`, later `[TOOL_CALLS]f[ARGS]{"a": 1}`."""

from __future__ import annotations

from uuid import uuid4

from remuda.text.parsers.calls import ToolCallParser
from remuda.text.parsers.literals import read_object
from remuda.text.parsers.source import Reading


class MistralToolCalls(ToolCallParser):
    marks = ("[TOOL_CALLS]",)
    openers = "[{"
    needs_special_tokens = True

    @staticmethod
    def new_id() -> str:
        """Mistral's templates want nine letters or digits."""
        return uuid4().hex[:9]

    def _may_begin(self, char: str, expected: bool) -> bool:
        return expected and (char in self.openers or char.isalnum() or char == "_")

    def _expected_after(self, blank: str | None) -> bool:
        return False

    def _read_named(self) -> Reading[None]:
        source = self._source
        self._identify((yield from self._read_name()))
        if (yield from source.ahead(("[CALL_ID]",))):
            source.skip(len("[CALL_ID]"))
            yield from self._read_name()
        if (yield from source.ahead(("[ARGS]",))):
            source.skip(len("[ARGS]"))
        yield from read_object(source, self._write)
