"""What all tool-call parsers share: a reply in pieces -> text, and calls whose arguments grow.

A parser reads each character once and decides as early as it can. Where a call may begin, what comes is held until its
name is one of those offered and its first value (or its end) has begun; then it is a call, and its arguments are sent
on as JSON while they come. Anything else was text. If a call breaks off later, its arguments stay as far as they came.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import NamedTuple
from uuid import uuid4

from remuda.text.parsers.literals import read_comma, read_object, read_string, read_value
from remuda.text.parsers.source import Reading, Source, TextEnded, Unreadable

_BLANK = re.compile(r"\s+")
_NAME = re.compile(r"[\w.:/-]+")
_MAX_NAME_CHARS = 256


@dataclass(frozen=True, slots=True)
class CallDelta:
    """More of call `index`: its name when it begins, then what its arguments grew by."""

    index: int
    name: str | None
    arguments: str


class ToolCall(NamedTuple):
    name: str
    arguments: str  # a JSON object, or the beginning of one if the call was cut


class Reply(NamedTuple):
    content: str
    calls: list[ToolCall]


class ToolCallParser(ABC):
    """Reads one reply. `names`: the functions offered; None: every name counts."""

    marks: tuple[str, ...] = ()  # strings around calls; they are text where no call follows
    openers = ""  # characters that a call begins with, other than a name's
    needs_special_tokens = False  # the tokenizer must not hide the marks
    needs_arguments = True  # whether {"name": "f"} alone is text

    def __init__(self, names: Collection[str] | None) -> None:
        self._names = names
        self._source = Source()
        self._pieces: list[str | CallDelta] = []
        self._pending: list[str] = []  # white space, marks and separators: dropped if a call follows
        self._begun = 0  # calls so far
        self._after_call = self._in_list = False
        self._name: str | None = None  # of the call being read
        self._unsent: list[str] = []  # JSON of the call being read
        self._sent = False  # whether its beginning is out
        stops = re.escape(self.openers + "".join({mark[0] for mark in self.marks}))
        self._prose = re.compile(rf"[^{stops}\n]+")
        self._machine = self._read()
        next(self._machine)

    def feed(self, text: str) -> list[str | CallDelta]:
        """What is certain once this has come: text and parts of calls, in order."""
        self._source.add(text)
        next(self._machine)
        return self._taken()

    def finish(self) -> list[str | CallDelta]:
        """The rest, when no more comes."""
        self._source.end()
        next(self._machine, None)
        return self._taken()

    @classmethod
    def parse(cls, text: str, names: Collection[str] | None = None) -> Reply:
        """A whole reply."""
        parser = cls(names)
        content, calls = "", []
        for piece in parser.feed(text) + parser.finish():
            if isinstance(piece, str):
                content += piece
            elif piece.name is not None:
                calls.append(ToolCall(piece.name, piece.arguments))
            else:
                calls[-1] = calls[-1]._replace(arguments=calls[-1].arguments + piece.arguments)
        return Reply(content, calls)

    @staticmethod
    def new_id() -> str:
        """What a client answers a call by."""
        return f"call_{uuid4().hex[:24]}"

    @abstractmethod
    def _may_begin(self, char: str, expected: bool) -> bool:
        """Whether a call may begin with `char`; `expected` after a mark, another call, or whatever else says so."""

    @abstractmethod
    def _expected_after(self, blank: str | None) -> bool:
        """Whether a call is expected after this white space; None: at the very beginning."""

    def _read_named(self) -> Reading[None]:
        """A call that begins with the function's name."""
        raise Unreadable
        yield

    # ------------------------------------------------------------------------------------------------ the whole reply

    def _read(self) -> Reading[None]:
        source = self._source
        expected = self._expected_after(None)
        mark_starts = {mark[0] for mark in self.marks}
        while char := (yield from source.peek()):
            mark = (yield from source.ahead(self.marks)) if char in mark_starts else ""
            if mark:
                self._pending.append(source.skip(len(mark)))
                expected = True
            elif self._may_begin(char, expected):
                expected = yield from self._read_call()
            elif self._after_call and char in ",;]":
                self._separator(source.skip(1))
            elif blank := source.run(_BLANK):
                self._pending.append(blank)
                expected = expected or self._expected_after(blank)
            else:
                self._say(source.run(self._prose) or source.skip(1))
                expected = False
        if not self._after_call:
            self._pieces += self._pending

    def _separator(self, char: str) -> None:
        """What stands between calls and behind the last."""
        if char == "]" and self._in_list:
            self._in_list = False
        else:
            self._pending.append(char)

    def _say(self, text: str) -> None:
        """Text for the client; the white space at its end waits for what follows."""
        body = text.rstrip()
        if body:
            self._pieces += [*self._pending, body]
            self._pending.clear()
            self._after_call = False
        self._pending.append(text[len(body) :])

    def _taken(self) -> list[str | CallDelta]:
        """The pieces, neighbours of one kind joined."""
        joined: list[str | CallDelta] = []
        texts: list[str] = []
        last: CallDelta | None = None

        def close() -> None:
            text = "".join(texts)
            texts.clear()
            if last is not None:
                joined.append(replace(last, arguments=text))
            elif text:
                joined.append(text)

        for piece in self._pieces:
            index = None if isinstance(piece, str) else piece.index
            if index != (None if last is None else last.index):
                close()
                last = None if isinstance(piece, str) else piece
            texts.append(piece if isinstance(piece, str) else piece.arguments)
        close()
        self._pieces.clear()
        return joined

    # ----------------------------------------------------------------------------------------------------- one call

    def _read_call(self) -> Reading[bool]:
        """Read what may be a call. True if it was one, or began as one; else it has become text."""
        source = self._source
        self._name, self._sent = None, False
        self._unsent.clear()
        source.mark()
        ended = False
        try:
            is_list = (yield from source.peek()) == "["
            if is_list:
                source.skip(1)
            if (yield from source.visible()) == "{":
                yield from self._read_json()
            else:
                yield from self._read_named()
            self._in_list = self._in_list or is_list
        except Unreadable as error:
            ended = isinstance(error, TextEnded)
        held = source.release()
        if self._sent:
            self._after_call = True
        if held and not (self._sent and ended):
            self._say(held)
        return self._sent

    def _read_json(self) -> Reading[None]:
        """{"name": ..., "arguments": {...}} in any order; `parameters` and `function` are names for the two as well."""
        source = self._source
        yield from source.expect("{")
        named = argued = False
        while (char := (yield from source.visible())) != "}":
            key = yield from self._read_short_string(char)
            yield from source.expect(":")
            char = yield from source.visible()
            if key in ("name", "function") and not named:
                named = True
                self._identify((yield from self._read_short_string(char)))
                if argued:
                    self._write("")
            elif key in ("arguments", "parameters") and not argued:
                argued = True
                yield from self._read_json_arguments(char)
            elif key in ("type", "id"):
                yield from self._read_short_string(char)
            elif self._sent:  # whatever else a call may hold
                yield from read_value(source, lambda written: None)
            else:
                raise Unreadable
            yield from read_comma(source, "}")
        if not named or (self.needs_arguments and not argued):
            raise Unreadable
        source.skip(1)
        self._write("" if argued else "{}")

    def _read_json_arguments(self, char: str) -> Reading[None]:
        """An object, a string that holds one as JSON, or null."""
        if char == "{":
            yield from read_object(self._source, self._write)
            return
        written: list[str] = []
        yield from read_value(self._source, written.append)
        try:
            value = json.loads("".join(written))
            value = json.loads(value) if isinstance(value, str) else value
        except (ValueError, RecursionError):
            raise Unreadable from None
        if value is not None and not isinstance(value, dict):
            raise Unreadable
        self._write(json.dumps(value or {}, ensure_ascii=False))

    def _read_short_string(self, char: str) -> Reading[str]:
        if char not in "\"'":
            raise Unreadable
        written: list[str] = []
        yield from read_string(self._source, written.append)
        return str(json.loads("".join(written)))

    def _read_name(self) -> Reading[str]:
        name = ""
        while (yield from self._source.peek()):
            if not (piece := self._source.run(_NAME, _MAX_NAME_CHARS - len(name))):
                break
            name += piece
        return name

    def _identify(self, name: str) -> None:
        """This is the call's name. Raises Unreadable if no such function was offered."""
        if not name or (self._names is not None and name not in self._names):
            raise Unreadable
        self._name = name

    def _write(self, text: str) -> None:
        """More JSON of the arguments: from here on, with a name, it is a call."""
        self._unsent.append(text)
        if self._name is None:
            return
        if not self._sent:
            self._sent = True
            self._pending.clear()
            self._pieces.append(CallDelta(self._begun, self._name, ""))
            self._begun += 1
        if grown := "".join(self._unsent):
            self._pieces.append(CallDelta(self._begun - 1, None, grown))
        self._unsent.clear()
        self._source.mark()
