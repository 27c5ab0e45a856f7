"""Python's and JSON's literals, mixed as models mix them, read once and written as JSON while they come.

Nothing is evaluated. Every reader raises Unreadable at the first character that fits neither language, TextEnded where
the text ends too early; what was written by then is a beginning of valid JSON.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable

from remuda.text.parsers.source import Reading, Source, Unreadable

Write = Callable[[str], None]

_MAX_DEPTH = 32
_MAX_ATOM_CHARS = 400
_WORDS = {"True": "true", "true": "true", "False": "false", "false": "false", "None": "null", "null": "null"}
_PLAIN = re.compile(r"""[^"'\\\x00-\x1f]+""")
_ATOM = re.compile(r"[\w.+-]+")
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_HEX = re.compile(r"[0-9a-fA-F]")
_SAME_ESCAPES = frozenset('nrtbf"\\/')
_OTHER_ESCAPES = {"'": "'", "\n": "", "0": "\\u0000", "a": "\\u0007", "v": "\\u000b"}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_AFTER_STRING = frozenset(",:)]} \t\r\n")


def read_value(source: Source, write: Write, depth: int = 0) -> Reading[None]:
    """Any literal. Tuples become arrays; keys of objects must be strings."""
    char = yield from source.visible()
    if depth > _MAX_DEPTH:
        raise Unreadable
    if char in "\"'":
        yield from read_string(source, write)
    elif char == "{":
        yield from read_object(source, write, depth)
    elif char == "[" or char == "(":
        yield from _read_array(source, write, "]" if char == "[" else ")", depth)
    else:
        yield from _read_atom(source, write)


def read_object(source: Source, write: Write, depth: int = 0) -> Reading[None]:
    yield from source.expect("{")
    before = "{"
    while (char := (yield from source.visible())) != "}":
        if char not in "\"'":
            raise Unreadable
        write(before)
        before = ", "
        yield from read_string(source, write)
        yield from source.expect(":")
        write(": ")
        yield from read_value(source, write, depth + 1)
        yield from read_comma(source, "}")
    source.skip(1)
    write("{}" if before == "{" else "}")


def read_comma(source: Source, close: str) -> Reading[None]:
    """Move over a comma, or stop before `close`."""
    if (yield from source.visible()) != close:
        yield from source.expect(",")


def read_string(source: Source, write: Write) -> Reading[None]:
    """In either kind of quotes, tripled or not. Line breaks need no escape, nor does a quote inside a word (it's)."""
    quote = yield from source.take()
    write('"')
    size = 1
    if (yield from source.peek()) == quote:
        source.skip(1)
        if (yield from source.peek()) != quote:
            write('"')
            return
        source.skip(1)
        size = 3
    while not (yield from _ends(source, write, quote, size)):
        pass
    write('"')


def _ends(source: Source, write: Write, quote: str, size: int) -> Reading[bool]:
    """Read on in a string; True when its closing quotes have been taken."""
    if plain := source.run(_PLAIN):
        write(plain)
    char = yield from source.take()
    if char == "\\":
        yield from _read_escape(source, write)
    elif char != quote:
        write(_escaped(char))
    elif size == 1:
        follows = yield from source.peek()
        if not follows or follows in _AFTER_STRING:
            return True
        write(_escaped(quote))
    else:
        count = 1
        while count < size and (yield from source.peek()) == quote:
            source.skip(1)
            count += 1
        if count == size:
            return True
        write(_escaped(quote * count))
    return False


def _read_escape(source: Source, write: Write) -> Reading[None]:
    char = yield from source.take()
    if char in _SAME_ESCAPES:
        write("\\" + char)
    elif char in _OTHER_ESCAPES:
        write(_OTHER_ESCAPES[char])
    elif char in _HEX_DIGITS:
        yield from _read_code_point(source, write, _HEX_DIGITS[char])
    else:  # no escape in either language: Python keeps the backslash
        write(_escaped("\\" + char))


def _read_code_point(source: Source, write: Write, digits: int) -> Reading[None]:
    """The digits after \\u and its like; both halves of a surrogate pair. Half a pair becomes U+FFFD."""
    code = yield from _read_hex(source, digits)
    while 0xD800 <= code < 0xDC00:
        if not (yield from source.ahead(("\\u",))):
            break
        source.skip(2)
        low = yield from _read_hex(source, 4)
        if 0xDC00 <= low < 0xE000:
            code = 0x10000 + ((code - 0xD800) << 10) + low - 0xDC00
        else:
            write("\ufffd")
            code = low
    is_character = 0 <= code < 0xD800 or 0xE000 <= code < 0x110000
    write(_escaped(chr(code)) if is_character else "\ufffd")


def _read_hex(source: Source, digits: int) -> Reading[int]:
    """-1 if fewer digits come."""
    text = ""
    while len(text) < digits:
        yield from source.peek()
        if not (digit := source.run(_HEX)):
            return -1
        text += digit
    return int(text, 16)


def _read_array(source: Source, write: Write, close: str, depth: int) -> Reading[None]:
    source.skip(1)
    write("[")
    before = ""
    while (yield from source.visible()) != close:
        write(before)
        before = ", "
        yield from read_value(source, write, depth + 1)
        yield from read_comma(source, close)
    source.skip(1)
    write("]")


def _read_atom(source: Source, write: Write) -> Reading[None]:
    text = ""
    while piece := source.run(_ATOM, _MAX_ATOM_CHARS - len(text)):
        text += piece
        yield from source.peek()
    yield from source.visible()  # an end within a number would make it another number
    written = _WORDS.get(text) or _number(text)
    if written is None:
        raise Unreadable
    write(written)


def _number(text: str) -> str | None:
    """As JSON writes it; None if it is no number."""
    if _JSON_NUMBER.fullmatch(text):
        return text
    try:
        return str(int(text, 0))
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return None
    return repr(number) if math.isfinite(number) and not text.lstrip("-+0").isdigit() else None


def _escaped(text: str) -> str:
    """As it stands between a JSON string's quotes."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
