"""A problem: a chat that ends with a user's turn, the right answer, and how a reply is scored.

Train and held-out problems are disjoint by construction: a hash of the *instance* (the operands, the word, the drawn
scene, never its wording) decides on which side it falls, so no wording of a held-out instance is ever trained on.
What can only be known by heart (that 0 is called "zero") is always trained: holding it out would test guessing.
"""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Any

from remuda.evaluation.problem import Message, Scoring
from remuda.evaluation.problem import Problem as StoredProblem

HELD_OUT_ONE_IN = 12


class Split(StrEnum):
    TRAIN = "train"
    HELD_OUT = "held-out"


@dataclass(frozen=True, slots=True)
class Problem:
    """`messages` are OpenAI's; an image part is {"type": "scene", "scene": Scene}, drawn when used."""

    skill: str
    variant: str
    key: str  # names the instance; decides the split
    messages: tuple[Message, ...]  # ends with the user's turn that is asked
    answer: str  # the reply a model is trained to give
    scoring: Scoring = Scoring.TEXT
    expected: str = ""  # for VALUE; otherwise the answer itself is expected
    tools: tuple[dict[str, Any], ...] = ()
    by_heart: bool = False  # no other instance tells its answer

    @property
    def split(self) -> Split:
        return Split.TRAIN if self.by_heart else split_of(self.skill, self.key)

    def stored(self) -> StoredProblem:
        """As `remuda eval` asks it: scenes are PNG images in data: URLs."""
        return StoredProblem(
            skill=self.skill, variant=self.variant, messages=[_drawn(message) for message in self.messages],
            answer=self.answer, scoring=self.scoring, expected=self.expected, tools=list(self.tools),
        )  # fmt: skip


def _drawn(message: Message) -> Message:
    content = message["content"]
    return message if isinstance(content, str) else message | {"content": [_drawn_part(part) for part in content]}


def _drawn_part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] != "scene":
        return part
    png = io.BytesIO()
    part["scene"].draw().save(png, "PNG")
    url = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def split_of(skill: str, key: str) -> Split:
    held_out = zlib.crc32(f"{skill}|{key}".encode()) % HELD_OUT_ONE_IN == 0
    return Split.HELD_OUT if held_out else Split.TRAIN


def draw(make: Callable[[Random], Problem], rng: Random, split: Split) -> Problem:
    """Make problems until one falls on the wanted side.

    Raises:
        RuntimeError: none did in 5,000 attempts, so the generator's instances are too few.
    """
    for _ in range(5000):
        problem = make(rng)
        if problem.split is split:
            return problem
    raise RuntimeError(f"{make.__name__} draws no {split} instance")


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def system(text: str) -> Message:
    return {"role": "system", "content": text}
