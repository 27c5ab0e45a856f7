"""Recall: a fact stated once, in a list of facts or among filler prose, asked for up to 24 attention chunks later.

Lengths are counted in tokens of the demo model's tokenizer as `approximate_tokens` sees them (every listed word is one
token there); with another tokenizer the distances are approximate.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from remuda.evaluation.problem import Message, Scoring
from training.problems.lexicon import CITIES, COLOURS, JOBS, NAMES, NOUNS, any_of, filler_sentence, phrase
from training.problems.problem import Problem, Split, assistant, draw, user

CHUNK_TOKENS = 256
DISTANCES_CHUNKS = (0, 1, 2, 4, 8, 12, 16, 20, 24)  # from the fact to the question, what a held-out run reports
_PIECES = re.compile(r" ?[^\W\d_]+|\d| ?[^\s\w]|_|\s")


def approximate_tokens(text: str) -> int:
    return len(_PIECES.findall(text))


@dataclass(frozen=True, slots=True)
class Fact:
    key: str
    statement: str
    questions: tuple[str, ...]
    answer: str
    value: str


def code(rng: Random) -> str:
    return str(rng.randint(1000, 9999))


def fact(rng: Random) -> Fact:
    """A statement about something that no other fact is likely to be about."""
    kind = rng.randrange(4)
    if kind == 0:
        return _property_of_a_thing(rng)
    if kind == 1:
        return _place_of_a_thing(rng)
    if kind == 2:
        return _owner_of_a_thing(rng)
    return _secret_of_a_person(rng)


def _property_of_a_thing(rng: Random) -> Fact:
    thing = phrase(rng)
    values = {
        "code": code,
        "price": lambda r: str(r.randint(2, 99)),
        "color": lambda r: r.choice(COLOURS),
        "number": code,
    }
    prop = rng.choice(sorted(values))
    value = values[prop](rng)
    statement = f"The {prop} of the {thing} is {value}."
    questions = (
        f"What is the {prop} of the {thing}?",
        f"Tell me the {prop} of the {thing}.",
        f"Which {prop} does the {thing} have?",
        f"What {prop} was given for the {thing}?",
    )
    return Fact(f"{thing}={value}", statement, questions, statement, value)


def _place_of_a_thing(rng: Random) -> Fact:
    thing, place = phrase(rng), rng.choice((rng.choice(NOUNS), rng.choice(CITIES)))
    where = f"in {place}" if place[0].isupper() else f"in the {place}"
    questions = (f"Where is the {thing}?", f"Where can I find the {thing}?", f"In which place is the {thing}?")
    return Fact(f"{thing}@{place}", f"The {thing} is {where}.", questions, f"The {thing} is {where}.", place)


def _owner_of_a_thing(rng: Random) -> Fact:
    thing, owner = phrase(rng), any_of(rng, NAMES)
    questions = (f"Who owns the {thing}?", f"To whom does the {thing} belong?", f"Who is the owner of the {thing}?")
    return Fact(
        f"{thing}<{owner}", f"The {thing} belongs to {owner}.", questions, f"The {thing} belongs to {owner}.", owner
    )


def _secret_of_a_person(rng: Random) -> Fact:
    name, city, job = any_of(rng, NAMES), rng.choice(CITIES), rng.choice(JOBS)
    number = code(rng)
    who = f"the {job} {name} from {city}"
    questions = (
        f"What is the secret number of {who}?",
        f"Which secret number does {who} have?",
        f"Tell me the secret number of {who}.",
    )
    statement = f"The secret number of {who} is {number}."
    return Fact(f"{who}={number}", statement, questions, statement, number)


def distinct_facts(rng: Random, count: int, split: Split | None = None) -> list[Fact]:
    """Facts about different things; with a split, all on that side of it."""
    found: dict[str, Fact] = {}
    while len(found) < count:
        new = fact(rng)
        if split is None or _as_problem(new, (), "", "list").split is split:
            found[re.split("[=@<]", new.key)[0]] = new
    return list(found.values())


def _as_problem(asked: Fact, messages: tuple[Message, ...], question: str, variant: str) -> Problem:
    return Problem("recall", variant, asked.key, (*messages, user(question)), asked.answer, Scoring.VALUE, asked.value)


def filler(rng: Random, tokens: int) -> list[str]:
    sentences: list[str] = []
    while tokens > 0:
        sentences.append(filler_sentence(rng))
        tokens -= approximate_tokens(sentences[-1])
    return sentences


def fact_list(rng: Random) -> Problem:
    """Two to forty facts in a list, then the question."""
    facts = distinct_facts(rng, rng.choice((2, 3, 4, 6, 8, 12, 16, 24, 40)))
    asked = rng.choice(facts)
    bullet, opening = rng.choice(("", "", "- ")), rng.choice(_OPENINGS)
    text = "\n".join([opening, *(bullet + f.statement for f in facts)])
    return _as_problem(asked, (), f"{text}\n{rng.choice(asked.questions)}", "list")


_OPENINGS = (
    "Here are some facts.",
    "Read these facts:",
    "Remember the following.",
    "Some notes:",
    "Read the text and answer the question.",
    "Use this text:",
    "Context:",
)


def needle(rng: Random, distance_chunks: int | None = None) -> Problem:
    """One fact among filler: `distance_chunks` chunks of it behind the fact, up to two chunks before it."""
    asked = fact(rng)
    distance = rng.choice(DISTANCES_CHUNKS) if distance_chunks is None else distance_chunks
    before = filler(rng, rng.randint(0, 2 * CHUNK_TOKENS))
    question = rng.choice(asked.questions)
    behind = max(0, distance * CHUNK_TOKENS - approximate_tokens(question) - 8) if distance else rng.randint(0, 100)
    text = " ".join([rng.choice(_OPENINGS), *before, asked.statement, *filler(rng, behind)])
    return _as_problem(asked, (), f"{text}\n{question}", f"{distance} chunks")


def recall(rng: Random) -> Problem:
    return fact_list(rng) if rng.random() < 0.3 else needle(rng)


def long_dialogue(rng: Random, tokens: int, questions: int) -> list[Message]:
    """For training: train-side facts strewn over a text of about `tokens` tokens, then questions about some of them.

    The questions follow one another as turns of one chat, so that one long text teaches many distances at once.
    """
    facts = distinct_facts(rng, questions + rng.randint(0, questions), Split.TRAIN)
    stated = sum(approximate_tokens(f.statement) + 1 for f in facts)
    lines = filler(rng, tokens - stated) + [f.statement for f in facts]
    rng.shuffle(lines)
    asked = rng.sample(facts, questions)
    joint = rng.choice((" ", " ", "\n"))
    opening = joint.join([rng.choice(_OPENINGS), *lines]) + "\n"
    messages: list[Message] = []
    for number, each in enumerate(asked):
        messages.append(user((opening if number == 0 else "") + rng.choice(each.questions)))
        messages.append(assistant(each.answer))
    return messages


def held_out_needles(rng: Random, count: int) -> list[Problem]:
    """Needles spread evenly over the distances."""

    def at(distance: int) -> Problem:
        return draw(lambda r: needle(r, distance), rng, Split.HELD_OUT)

    return [at(DISTANCES_CHUNKS[i % len(DISTANCES_CHUNKS)]) for i in range(count)]
