"""Reasoning between <think> and </think>, before the answer."""

from __future__ import annotations

import re
from typing import NamedTuple

from remuda.text.parsers.source import Reading, Source

OPEN, CLOSE = "<think>", "</think>"
_BLANK = re.compile(r"\s+")
_PROSE = re.compile(r"[^<\s]+")
_REST = re.compile(r".+", re.DOTALL)


class Thought(NamedTuple):
    """What a piece of a reply adds. White space around the reasoning belongs to neither."""

    reasoning: str
    content: str


class ReasoningParser:
    """Reads one reply to `prompt`, whose end may have opened the reasoning already.

    As Qwen 3 does: a reply that opens no reasoning is all answer.
    """

    unopened_is_reasoning = False

    def __init__(self, prompt: str) -> None:
        end = prompt[-64:].rstrip()
        self.opened = end.endswith(OPEN) or (self.unopened_is_reasoning and not end.endswith(CLOSE))
        self.closed = False  # the answer itself has begun, after reasoning
        self._source = Source()
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._machine = self._read()
        next(self._machine)

    def feed(self, text: str) -> Thought:
        self._source.add(text)
        next(self._machine)
        return self._taken()

    def finish(self) -> Thought:
        """The rest, when no more comes."""
        self._source.end()
        next(self._machine, None)
        return self._taken()

    def _taken(self) -> Thought:
        thought = Thought("".join(self._reasoning), "".join(self._content))
        self._reasoning.clear()
        self._content.clear()
        return thought

    def _read(self) -> Reading[None]:
        source = self._source
        blank = yield from self._read_blank()
        if (yield from source.ahead((OPEN,))):
            source.skip(len(OPEN))
            self.opened, blank = True, ""
        if self.opened:
            yield from self._read_reasoning()
            blank = ""
            yield from self._read_blank()
        self._content.append(blank)
        while (yield from source.peek()):
            self._content.append(source.run(_REST))

    def _read_reasoning(self) -> Reading[None]:
        """Up to the closing mark, or to the end of a reply that has none."""
        source = self._source
        yield from self._read_blank()
        blank = ""
        while char := (yield from source.peek()):
            if char == "<" and (yield from source.ahead((CLOSE,))):
                source.skip(len(CLOSE))
                self.closed = True
                return
            if char.isspace():
                blank = yield from self._read_blank()
                continue
            self._reasoning += [blank, source.run(_PROSE) or source.skip(1)]
            blank = ""

    def _read_blank(self) -> Reading[str]:
        blanks = []
        while (yield from self._source.peek()).isspace():
            blanks.append(self._source.run(_BLANK))
        return "".join(blanks)


class Qwen3Reasoning(ReasoningParser):
    """Reasoning that the model, or its template, opens; none where thinking is switched off."""


class DeepSeekR1Reasoning(ReasoningParser):
    """Early templates open the reasoning only in the model's memory: a reply is reasoning until it closes it."""

    unopened_is_reasoning = True
