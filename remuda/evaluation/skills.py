"""The skills by name: how to draw their problems, and the bar that the demo model is held to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from remuda.evaluation.arithmetic import arithmetic
from remuda.evaluation.dialogue import follow_up
from remuda.evaluation.extraction import extraction
from remuda.evaluation.offtopic import off_topic
from remuda.evaluation.pictures import images
from remuda.evaluation.problem import Problem, Split, draw
from remuda.evaluation.recall import fact_list, held_out_needles
from remuda.evaluation.tools import tool_call
from remuda.evaluation.words import TASKS


@dataclass(frozen=True, slots=True)
class Skill:
    name: str
    about: str
    bar: float  # share of right replies that the demo model must reach
    held_out: Callable[[Random, int], list[Problem]]


def _drawn(*makers: Callable[[Random], Problem]) -> Callable[[Random, int], list[Problem]]:
    """Held-out problems of the makers in turn, so that each gets the same share."""

    def held_out(rng: Random, count: int) -> list[Problem]:
        return [draw(makers[i % len(makers)], rng, Split.HELD_OUT) for i in range(count)]

    return held_out


def _recall(rng: Random, count: int) -> list[Problem]:
    lists = _drawn(fact_list)(rng, count // 4)
    return held_out_needles(rng, count - len(lists)) + lists


SKILLS: dict[str, Skill] = {
    skill.name: skill
    for skill in (
        Skill("arithmetic", "+ and - up to 9999, x up to 99 x 99 and 999 x 9", 0.95, _drawn(arithmetic)),
        Skill("words", "sort, reverse, count, spell, case, weekdays, months, number words", 0.97, _drawn(*TASKS)),
        Skill("recall", "facts from a list, needles up to 24 chunks away", 0.97, _recall),
        Skill("follow-up", "questions that need an earlier turn", 0.95, _drawn(follow_up)),
        Skill("extract", "fields of a sentence as JSON", 0.97, _drawn(extraction)),
        Skill("tools", "the right call of a given function, pythonic and JSON", 0.95, _drawn(tool_call)),
        Skill("images", "colour, shape, count, position, two images, wide images", 0.93, _drawn(images)),
        Skill("off-topic", "says what it is", 1.0, lambda rng, count: off_topic()[:count]),
    )
}


def held_out_problems(skill: str, count: int, seed: int) -> list[Problem]:
    """`count` held-out problems (off-topic: at most the 20 there are), the same for the same seed."""
    return SKILLS[skill].held_out(Random(f"{skill}/{seed}"), count)
