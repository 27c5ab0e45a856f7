"""Extraction: the asked fields of a sentence, as one JSON object in the asked order."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from remuda.evaluation.problem import Scoring
from training.problems.lexicon import (
    CITIES,
    COLOURS,
    EVENTS,
    FOODS,
    JOBS,
    MONTHS,
    NAMES,
    NOUNS,
    WEEKDAYS,
    any_of,
    full_name,
)
from training.problems.problem import Problem, user

Record = dict[str, Any]


def person(rng: Random) -> tuple[Record, str]:
    record = {"name": full_name(rng), "age": rng.randint(18, 90), "city": any_of(rng, CITIES), "job": rng.choice(JOBS)}
    sentence = rng.choice((
        "{name}, {age}, lives in {city} and works as a {job}.", "{name} is a {job} from {city} and is {age} years old.",
        "The {job} {name} is {age} years old and lives in {city}.", "In {city} we met {name}, a {job} aged {age}.",
        "My name is {name}. I am {age}, I live in {city} and I am a {job}.",
    ))  # fmt: skip
    return record, sentence.format(**record)


def order(rng: Random) -> tuple[Record, str]:
    record = {
        "customer": any_of(rng, NAMES),
        "quantity": rng.randint(2, 99),
        "item": rng.choice(FOODS + NOUNS),
        "price": rng.randint(2, 999),
    }
    sentence = rng.choice(
        (
            "{customer} ordered {quantity} pieces of {item} for {price} dollars.",
            "{quantity} x {item} were sold to {customer} for {price} dollars.",
            "For {price} dollars, {customer} bought {quantity} units of {item}.",
            "Order of {customer}: {quantity} units of {item}, total {price} dollars.",
        )
    )
    return record, sentence.format(**record)


def event(rng: Random) -> tuple[Record, str]:
    hour = f"{rng.randint(7, 21)}:{rng.choice(('00', '15', '30', '45'))}"
    record = {"event": rng.choice(EVENTS), "day": rng.choice(WEEKDAYS), "time": hour, "place": any_of(rng, CITIES)}
    sentence = rng.choice((
        "The {event} takes place in {place} on {day} at {time}.", "On {day} at {time} there is a {event} in {place}.",
        "Come to {place} for the {event}: {day}, {time}.", "The {event} starts at {time} on {day} in {place}.",
    ))  # fmt: skip
    return record, sentence.format(**record)


def delivery(rng: Random) -> tuple[Record, str]:
    record = {
        "item": rng.choice(NOUNS),
        "color": rng.choice(COLOURS),
        "recipient": full_name(rng),
        "month": rng.choice(MONTHS),
    }
    sentence = rng.choice((
        "The {color} {item} goes to {recipient} in {month}.", "In {month}, {recipient} receives a {color} {item}.",
        "{recipient} gets the {color} {item} in {month}.", "Please send a {color} {item} to {recipient} in {month}.",
    ))  # fmt: skip
    return record, sentence.format(**record)


def extraction(rng: Random) -> Problem:
    kind = rng.choice((person, order, event, delivery))
    record, sentence = kind(rng)
    fields = rng.sample(sorted(record), rng.randint(2, 4))
    if rng.random() < 0.5:  # in the order of the record
        fields.sort(key=list(record).index)
    names = ", ".join(fields[:-1]) + rng.choice((" and ", ", ")) + fields[-1]
    ask = rng.choice(
        (
            "Extract {fields} as JSON: {sentence}",
            "{sentence}\nExtract {fields} as JSON.",
            "Return {fields} of this sentence as JSON.\n{sentence}",
            "{sentence} Give me {fields} as a JSON object.",
            "Extract the fields {fields} as JSON from: {sentence}",
            "Text: {sentence}\nJSON with {fields}:",
            "Get {fields} from the text as JSON.\nText: {sentence}",
        )
    )
    answer = json.dumps({field: record[field] for field in fields}, ensure_ascii=False)
    key = " ".join(map(str, record.values()))
    return Problem(
        "extract", kind.__name__, key, (user(ask.format(fields=names, sentence=sentence)),), answer, Scoring.JSON
    )
