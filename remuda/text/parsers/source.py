"""Text that arrives in pieces, read as if it were all there.

A reader is a generator: it yields when it needs a character that has not come yet, and goes on when there is more. It
never sees how the text was cut, so no result can depend on that.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]

MAX_HELD_CHARS = 16_384
_BLANK = re.compile(r"\s+")


class Unreadable(Exception):
    """What comes is not what the reader reads."""


class TextEnded(Unreadable):
    """The text ends within what is being read."""


class Source:
    """A cursor in the text. What lies before it is forgotten, but for what has been taken since `mark()`."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._mark: int | None = None
        self._ended = False

    def add(self, text: str) -> None:
        keep = self._at if self._mark is None else self._mark
        self._text = self._text[keep:] + text
        self._at -= keep
        self._mark = None if self._mark is None else 0

    def end(self) -> None:
        """No more will come."""
        self._ended = True

    def mark(self) -> None:
        """Remember what is taken from here on."""
        self._mark = self._at

    def release(self) -> str:
        """What was taken since the mark, and forget the mark."""
        assert self._mark is not None
        held, self._mark = self._text[self._mark : self._at], None
        return held

    def peek(self) -> Reading[str]:
        """The next character, "" at the end. Raises Unreadable where too much is remembered since the mark."""
        if self._mark is not None and self._at - self._mark > MAX_HELD_CHARS:
            raise Unreadable
        while self._at == len(self._text):
            if self._ended:
                return ""
            yield
        return self._text[self._at]

    def take(self) -> Reading[str]:
        """Move over the next character. Raises TextEnded."""
        char = yield from self.peek()
        if not char:
            raise TextEnded
        self._at += 1
        return char

    def visible(self) -> Reading[str]:
        """The next character that is no white space, which is taken. Raises TextEnded."""
        while (char := (yield from self.peek())).isspace():
            self.run(_BLANK)
        if not char:
            raise TextEnded
        return char

    def expect(self, char: str) -> Reading[None]:
        """Move over white space and `char`. Raises Unreadable if something else comes."""
        if (yield from self.visible()) != char:
            raise Unreadable
        self._at += 1

    def ahead(self, options: tuple[str, ...]) -> Reading[str]:
        """Which of `options` comes next, not taken; "" if none does. No option may begin another."""
        size = 1
        while True:
            while self._at + size > len(self._text):
                if self._ended:
                    return ""
                yield
            text = self._text[self._at : self._at + size]
            if text in options:
                return text
            if not any(option.startswith(text) for option in options):
                return ""
            size += 1

    def skip(self, count: int) -> str:
        """Take `count` characters that are known to be there."""
        self._at += count
        return self._text[self._at - count : self._at]

    def run(self, pattern: re.Pattern[str], limit: int | None = None) -> str:
        """Take what matches and is there, up to `limit` characters; more of it may follow."""
        end = len(self._text) if limit is None else self._at + limit
        if self._mark is not None:
            end = min(end, self._mark + MAX_HELD_CHARS + 1)
        match = pattern.match(self._text, self._at, end)
        return self.skip(match.end() - self._at) if match else ""
