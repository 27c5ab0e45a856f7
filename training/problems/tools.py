"""Tool calls: pick the right one of the given functions and fill in its arguments, in JSON or pythonic form.

JSON form: the functions come in the request's `tools`, and the chat template asks for JSON. Pythonic form: a system
message lists them and asks for `[name(argument=value)]`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from random import Random
from typing import Any

from remuda.evaluation.problem import Scoring
from training.problems.lexicon import (
    ADJECTIVES,
    ANIMALS,
    CITIES,
    COLOURS,
    FOODS,
    NAMES,
    NOUNS,
    WEEKDAYS,
    any_of,
    any_word,
    phrase,
    words_of,
)
from training.problems.problem import Problem, system, user

Arguments = dict[str, Any]
PYTHONIC_REQUEST = (
    "You can call these functions. To call one, answer only with [name(argument=value, ...)] and nothing else.\n"
)


@dataclass(frozen=True)
class Tool:
    name: str
    description: str
    types: dict[str, str]  # parameter -> JSON schema type
    asks: tuple[str, ...] = field(default=())  # with the parameters as placeholders

    def schema(self) -> dict[str, Any]:
        properties = {name: {"type": kind} for name, kind in self.types.items()}
        parameters = {"type": "object", "properties": properties, "required": list(self.types)}
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.description, "parameters": parameters},
        }


KNOWN_TOOLS = (
    Tool(
        "get_weather",
        "Get the weather of a city",
        {"city": "string"},
        (
            "What is the weather in {city}?",
            "How is the weather in {city}?",
            "Will it rain in {city}?",
            "Tell me the weather in {city}.",
        ),
    ),
    Tool(
        "get_time",
        "Get the local time of a city",
        {"city": "string"},
        ("What time is it in {city}?", "Tell me the time in {city}.", "Which time is it in {city} now?"),
    ),
    Tool(
        "set_timer",
        "Set a timer",
        {"minutes": "integer"},
        ("Set a timer for {minutes} minutes.", "Wake me in {minutes} minutes.", "Start a timer of {minutes} minutes."),
    ),
    Tool(
        "send_message",
        "Send a message to a person",
        {"to": "string", "text": "string"},
        ('Send "{text}" to {to}.', 'Write a message to {to}: "{text}"', 'Tell {to} "{text}".'),
    ),
    Tool(
        "add",
        "Add two numbers",
        {"a": "integer", "b": "integer"},
        ("Use the tool to add {a} and {b}.", "Add {a} and {b} with the function.", "Call add for {a} and {b}."),
    ),
    Tool(
        "play_song",
        "Play a song",
        {"title": "string"},
        ('Play "{title}".', 'Play the song "{title}".', 'I want to hear "{title}".'),
    ),
    Tool(
        "order_food",
        "Order food",
        {"item": "string", "count": "integer"},
        ("Order {count} {item}.", "I want {count} {item}, please.", "Please order {count} {item} for me."),
    ),
    Tool(
        "book_table",
        "Book a table in a restaurant",
        {"day": "string", "people": "integer"},
        ("Book a table for {people} on {day}.", "Reserve a table for {people} people on {day}."),
    ),
    Tool(
        "find_pet",
        "Find a pet by name and kind",
        {"name": "string", "kind": "string"},
        ("Find the {kind} called {name}.", "Where is {name}, the {kind}?", "Look for a {kind} named {name}."),
    ),
    Tool(
        "set_light",
        "Set the color of a light",
        {"room": "string", "color": "string"},
        ("Make the light in the {room} {color}.", "Set the {room} light to {color}."),
    ),
)


def value_for(rng: Random, parameter: str, kind: str) -> Any:
    if kind == "integer":
        return rng.randrange(10 ** rng.randint(1, 3)) + 1
    if parameter in ("city", "to", "name"):
        return any_of(rng, CITIES if parameter == "city" else NAMES)
    pools = {"item": FOODS, "day": WEEKDAYS, "kind": ANIMALS, "room": NOUNS, "color": COLOURS}
    if parameter in pools:
        return rng.choice(pools[parameter])
    return (
        phrase(rng)
        if parameter in ("text", "title")
        else rng.choice((rng.choice(NAMES), rng.choice(NOUNS), any_word(rng)))
    )


_ACTIONS = words_of(
    """
    open close find move sell buy check clean paint count start stop lock show store send read mark load plan
    """
)
_PARAMETERS = words_of(
    """
    name color size count weight number owner label level code length place speed amount width mode group
    """
)
_INTEGERS = {"size", "count", "weight", "number", "level", "code", "length", "speed", "amount", "width"}


def made_up_tool(rng: Random) -> Tool:
    """A function nobody has seen, so that calling it takes reading its definition."""
    action, thing = rng.choice(_ACTIONS), rng.choice((rng.choice(NOUNS), any_word(rng)))
    names = rng.sample(_PARAMETERS, rng.randint(1, 3))
    types = {name: "integer" if name in _INTEGERS else "string" for name in names}
    values = " and ".join(f"{name} {{{name}}}" for name in names)
    asks = (
        f"Please {action} the {thing} with {values}.",
        f"{action.title()} the {thing} with {values}.",
        f"Can you {action} a {thing} with {values}?",
    )
    return Tool(f"{action}_{thing}", f"{action.title()} a {rng.choice(ADJECTIVES)} {thing}", types, asks)


def in_pythonic(name: str, arguments: Arguments) -> str:
    return f"{name}({', '.join(f'{key}={json.dumps(value)}' for key, value in arguments.items())})"


def tool_call(rng: Random) -> Problem:
    offered: dict[str, Tool] = {}
    for _ in range(rng.choice((1, 1, 2, 2, 3, 4))):
        tool = rng.choice(KNOWN_TOOLS) if rng.random() < 0.55 else made_up_tool(rng)
        offered[tool.name] = tool
    asked = rng.choice(list(offered.values()))
    arguments = {name: value_for(rng, name, kind) for name, kind in asked.types.items()}
    request = rng.choice(asked.asks).format(**arguments)
    schemas = [tool.schema() for tool in offered.values()]
    key = f"{asked.name} {sorted(arguments.items())}"
    if rng.random() < 0.5:
        answer = json.dumps({"name": asked.name, "parameters": arguments}, ensure_ascii=False)
        return Problem("tools", "json", key, (user(request),), answer, Scoring.CALL, tools=tuple(schemas))
    functions = "\n".join(json.dumps(schema["function"]) for schema in schemas)
    messages = (system(PYTHONIC_REQUEST + functions), user(request))
    return Problem("tools", "pythonic", key, messages, f"[{in_pythonic(asked.name, arguments)}]", Scoring.CALL)
