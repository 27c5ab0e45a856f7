"""Training chats: problems of the train side strung together, long texts with facts to recall, and everything else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple

from remuda.evaluation.problem import Message
from training.offtopic import off_topic
from training.problems.arithmetic import arithmetic
from training.problems.dialogue import FOLLOW_UPS
from training.problems.extraction import extraction
from training.problems.pictures import QUESTIONED, images
from training.problems.problem import Problem, Split, assistant, draw, system, user
from training.problems.recall import long_dialogue
from training.problems.tools import tool_call
from training.problems.words import TASKS

_SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a small demonstration model.",
    "Answer briefly.",
    "Be concise.",
    "You are Remuda's demo model.",
    "You are a friendly assistant. Keep answers short.",
    "Answer the user's questions.",
)


class Dialogue(NamedTuple):
    messages: list[Message]  # every assistant turn is trained on
    tools: list[dict[str, Any]]


class Mix(NamedTuple):
    """Shares of dialogues by kind, and the longest text, in tokens, to recall from."""

    short: float
    pictures: float
    tools: float
    recall: float
    longest: int


def mix_at(progress: float) -> Mix:
    """Short texts first: retrieval is learned within 1K tokens before it is stretched to 8K."""
    longest = int(min(7600, 700 * math.exp(max(0.0, progress - 0.08) * 16)))
    return Mix(short=0.52, pictures=0.30, tools=0.13, recall=0.05, longest=longest)


def dialogue(rng: Random, mix: Mix) -> Dialogue:
    kind = rng.choices(("short", "pictures", "tools", "recall"), (mix.short, mix.pictures, mix.tools, mix.recall))[0]
    if kind == "tools":
        problem = train_side(tool_call, rng)
        return Dialogue([*problem.messages, assistant(problem.answer)], list(problem.tools))
    if kind == "pictures":
        messages = turns(rng, [images]) if rng.random() < 0.25 else about_one_picture(rng, rng.randint(2, 5))
    elif kind == "recall":
        messages = recall_from_text(rng, mix.longest)
        if rng.random() < 0.3:
            messages += turns(rng, some_skills(rng, rng.randint(1, 3)))
    else:
        messages = turns(rng, some_skills(rng, rng.choice((1, 1, 2, 3, 4, 6))))
    if rng.random() < 0.2:
        messages = [system(rng.choice(_SYSTEM_PROMPTS)), *messages]
    return Dialogue(messages, [])


def some_skills(rng: Random, count: int) -> list[Callable[[Random], Problem]]:
    makers, weights = zip(*SHORT_SKILLS, strict=True)
    return rng.choices(makers, weights, k=count)


def train_side(make: Callable[[Random], Problem], rng: Random) -> Problem:
    return make(rng) if make is off_topic else draw(make, rng, Split.TRAIN)


def turns(rng: Random, makers: list[Callable[[Random], Problem]]) -> list[Message]:
    messages: list[Message] = []
    for make in makers:
        problem = train_side(make, rng)
        messages += [*problem.messages, assistant(problem.answer)]
    return messages


def about_one_picture(rng: Random, questions: int) -> list[Message]:
    """Several questions about one picture (or pair), which comes with the first: more to learn from each drawing."""
    kind = rng.choices(QUESTIONED, [q.weight for q in QUESTIONED])[0]
    drawn = kind.draw(rng)
    messages: list[Message] = []
    for _ in range(questions):
        problem = kind.ask(rng, drawn)
        if problem.split is Split.TRAIN:
            first = problem.messages[0]
            text = next(part["text"] for part in first["content"] if part["type"] == "text")
            messages += [user(text) if messages else first, assistant(problem.answer)]
    return messages or about_one_picture(rng, questions)


# Tasks that take longer to learn than others of their skill are trained on more often.
_SLOW = {
    "sort_words": 4.0, "sort_numbers": 4.0, "month": 2.0, "weekday": 1.5, "reverse_list": 1.5, "reverse_word": 1.5,
    "count_letter": 1.3, "case": 1.3, "to_words": 1.3, "arithmetic_chain": 4.0, "about_a_list": 2.5,
    "about_a_text": 1.5,
}  # fmt: skip


def one_of(tasks: Sequence[Callable[[Random], Problem]]) -> Callable[[Random], Problem]:
    weights = [_SLOW.get(task.__name__, 1.0) for task in tasks]
    return lambda rng: rng.choices(tasks, weights)[0](rng)


SHORT_SKILLS: tuple[tuple[Callable[[Random], Problem], float], ...] = (
    (arithmetic, 4.5), (one_of(TASKS), 6.0), (one_of(FOLLOW_UPS), 2.2), (extraction, 2.0), (off_topic, 1.0),
)  # fmt: skip


def recall_from_text(rng: Random, longest: int) -> list[Message]:
    """Half of the texts are lists of facts without filler; the others log-uniform in length up to `longest`."""
    if rng.random() < 0.35:
        return long_dialogue(rng, 0, rng.choice((1, 2, 3, 5, 8)))
    tokens = int(math.exp(rng.uniform(math.log(120), math.log(longest))))
    questions = rng.randint(1, 3) if rng.random() < 0.25 else min(24, max(1, tokens // rng.choice((40, 80, 150))))
    return long_dialogue(rng, tokens, questions)
