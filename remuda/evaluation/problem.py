"""A problem as a file holds it: a chat that ends with a user's turn, the right answer, and how a reply is scored.

A file has one JSON object a line and may be compressed by gzip; several problems of a skill stand in the order in which
they are asked.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from remuda.protocol.errors import ConfigError

Message = dict[str, Any]  # OpenAI's chat message
EMBEDDED = Path(str(files("remuda"))) / "assets" / "problems.jsonl.gz"
_GZIP = b"\x1f\x8b"


class Scoring(StrEnum):
    TEXT = "text"  # the same text, but for outer space and a final full stop
    NUMBER = "number"  # the last number is right (the working before it is free)
    VALUE = "value"  # the expected value appears as a whole word
    JSON = "json"  # one JSON object with equal content
    CALL = "call"  # the same function calls, pythonic or JSON
    DEMO = "demo"  # says that this is a demonstration model


class Problem(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    skill: str
    variant: str
    messages: list[Message]
    answer: str
    scoring: Scoring = Scoring.TEXT
    expected: str = ""  # for VALUE; otherwise the answer itself is expected
    tools: list[dict[str, Any]] = []


def read_problems(path: Path = EMBEDDED) -> dict[str, list[Problem]]:
    """Skill -> its problems, in the file's order. Raises ConfigError naming the line that is wrong."""
    decoder = msgspec.json.Decoder(Problem)
    by_skill: dict[str, list[Problem]] = {}
    for number, line in enumerate(_lines(path), 1):
        try:
            problem = decoder.decode(line)
        except msgspec.MsgspecError as error:
            raise ConfigError(f"{path}, line {number}: {error}") from None
        by_skill.setdefault(problem.skill, []).append(problem)
    return by_skill


def _lines(path: Path) -> list[bytes]:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if data[:2] == _GZIP else data).splitlines()
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"problems cannot be read from {path}: {error}") from None


def write_problems(path: Path, problems: Iterable[Problem]) -> None:
    """The same bytes for the same problems."""
    lines = b"".join(msgspec.json.encode(problem) + b"\n" for problem in problems)
    path.write_bytes(gzip.compress(lines, mtime=0))
