"""The embedded skills by name, and the bar that the demo model is held to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Skill:
    name: str
    about: str
    bar: float  # share of right replies that the demo model must reach


SKILLS: dict[str, Skill] = {
    skill.name: skill
    for skill in (
        Skill("arithmetic", "+ and - up to 9999, x up to 99 x 99 and 999 x 9", 0.95),
        Skill("words", "sort, reverse, count, spell, case, weekdays, months, number words", 0.97),
        Skill("recall", "facts from a list, needles up to 24 chunks away", 0.97),
        Skill("follow-up", "questions that need an earlier turn", 0.95),
        Skill("extract", "fields of a sentence as JSON", 0.97),
        Skill("tools", "the right call of a given function, pythonic and JSON", 0.95),
        Skill("images", "colour, shape, count, position, two images, wide images", 0.93),
        Skill("off-topic", "says what it is", 1.0),
    )
}
