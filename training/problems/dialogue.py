"""Follow-up questions: the answer needs an earlier turn of the chat."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from remuda.evaluation.problem import Message, Scoring
from training.problems.arithmetic import working
from training.problems.lexicon import (
    ANIMALS,
    CITIES,
    COLOURS,
    FOODS,
    JOBS,
    NAMES,
    any_of,
    any_word,
    filler_sentence,
    with_article,
)
from training.problems.problem import Problem, assistant, user
from training.problems.words import listed, some_items


def _follow_up(
    variant: str, key: str, messages: list[Message], answer: str, scoring: Scoring, expected: str = ""
) -> Problem:
    return Problem("follow-up", variant, f"{variant}:{key}", tuple(messages), answer, scoring, expected)


def about_me(rng: Random) -> Problem:
    """The user tells something, other turns may pass, then asks for it."""
    name, city = any_of(rng, NAMES), any_of(rng, CITIES)
    pet, food, job = (rng.choice(pool) for pool in (ANIMALS, FOODS, JOBS))
    colour = rng.choice(COLOURS)
    told = {
        "name": (f"My name is {name}.", "What is my name?", f"Your name is {name}.", name),
        "city": (f"I live in {city}.", "Where do I live?", f"You live in {city}.", city),
        "pet": (f"I have {with_article(pet)}.", "Which animal do I have?", f"You have {with_article(pet)}.", pet),
        "food": (f"I like {food}.", "Which food do I like?", f"You like {food}.", food),
        "job": (f"I work as {with_article(job)}.", "What is my job?", f"You work as {with_article(job)}.", job),
        "color": (
            f"My favorite color is {colour}.",
            "What is my favorite color?",
            f"Your favorite color is {colour}.",
            colour,
        ),
    }
    kinds = rng.sample(sorted(told), rng.randint(1, 3))
    asked = rng.choice(kinds)
    messages: list[Message] = []
    if rng.random() < 0.5:
        messages = [user(" ".join(told[kind][0] for kind in kinds)), assistant("Noted.")]
    else:
        for kind in kinds:
            messages += [user(told[kind][0]), assistant("Noted.")]
    for _ in range(rng.choice((0, 0, 1, 2))):
        messages += aside(rng)
    _, question, answer, value = told[asked]
    messages.append(user(question))
    return _follow_up("about-me", " ".join(told[kind][3] for kind in kinds), messages, answer, Scoring.VALUE, value)


def aside(rng: Random) -> list[Message]:
    """A turn about something else."""
    if rng.random() < 0.5:
        a, b = rng.randint(0, 99), rng.randint(0, 99)
        return [user(f"What is {a} + {b}?"), assistant(working("+", a, b))]
    word = any_word(rng)
    return [user(f'Spell "{word}".'), assistant("-".join(word))]


def arithmetic_chain(rng: Random) -> Problem:
    a, b = rng.randint(1, 99), rng.randint(1, 99)
    result = a + b
    messages = [user(f"What is {a} + {b}?"), assistant(working("+", a, b))]
    for last in (False, True) if rng.random() < 0.4 else (True,):
        n = rng.randint(2, 99)
        operator = rng.choice("+-" if n <= result else "+")
        ask = rng.choice({
            "+": ("Now add {}.", "Add {} to that.", "And plus {}?", "Add {} more."),
            "-": ("Now subtract {}.", "Subtract {} from that.", "And minus {}?", "Take away {}."),
        }[operator])  # fmt: skip
        reply = working(operator, result, n)
        result = result + n if operator == "+" else result - n
        messages.append(user(ask.format(n)))
        if not last:
            messages.append(assistant(reply))
    return _follow_up("arithmetic", f"{a} {b} {reply}", messages, reply, Scoring.NUMBER)


def about_a_list(rng: Random) -> Problem:
    items = some_items(rng, 3, 5)
    ordered = sorted(items)
    messages = [user(f"Sort these words alphabetically: {listed(rng, items)}"), assistant(", ".join(ordered))]
    asks = {
        ("Now reverse the list.", "Now in reverse order.", "And backwards?"): ", ".join(ordered[::-1]),
        ("Which one is first?", "What is the first word?", "Which word comes first?"): ordered[0],
        ("Which one is last?", "What is the last word?", "Which word comes last?"): ordered[-1],
        ("Now in upper case.", "Now write them in upper case.", "Make them uppercase."): ", ".join(ordered).upper(),
        ("Which one is second?", "What is the second word?"): ordered[1],
    }
    questions = rng.choice(list(asks))
    messages.append(user(rng.choice(questions)))
    return _follow_up("list", " ".join(ordered), messages, asks[questions], Scoring.TEXT)


def about_a_word(rng: Random) -> Problem:
    word = any_word(rng)
    messages = [user(f'Spell "{word}".'), assistant("-".join(word))]
    asks = {
        ("Now backwards.", "Now spell it backwards.", "Now reverse it.", "And reversed?"): (word[::-1], Scoring.TEXT),
        ("Now in upper case.", "Make it upper case.", "And in capital letters?"): (word.upper(), Scoring.TEXT),
        ("How many letters does it have?", "How many letters is that?"): (
            f"{'-'.join(word)}: {len(word)}",
            Scoring.NUMBER,
        ),
        ("What is the first letter?", "Which letter is first?"): (word[0], Scoring.TEXT),
        ("What is the last letter?", "Which letter is last?"): (word[-1], Scoring.TEXT),
    }
    questions = rng.choice(list(asks))
    messages.append(user(rng.choice(questions)))
    return _follow_up("word", word, messages, *asks[questions])


def another_word(rng: Random) -> Problem:
    """ "And ...?": the task is in the earlier turn, the word in the last."""
    first, second = any_word(rng), any_word(rng)
    task, apply = rng.choice((
        ("Spell {}.", "-".join), ("Reverse the word {}.", lambda w: w[::-1]), ("Write {} in upper case.", str.upper),
    ))  # fmt: skip
    messages = [user(task.format(f'"{first}"')), assistant(apply(first))]
    messages.append(
        user(rng.choice(("And {}?", "Now {}.", "And what about {}?", "The same for {}.")).format(f'"{second}"'))
    )
    return _follow_up("another-word", second, messages, apply(second), Scoring.TEXT)


def about_a_text(rng: Random) -> Problem:
    """A sentence is given in one turn and asked about in a later one."""
    sentence = filler_sentence(rng)
    word = rng.choice(("first", "last"))
    words = sentence.rstrip(".").split()
    messages = [user(f"Remember this sentence: {sentence}"), assistant("Noted.")]
    for _ in range(rng.choice((0, 1))):
        messages += aside(rng)
    if rng.random() < 0.5:
        messages.append(user("Repeat the sentence."))
        return _follow_up("text", sentence, messages, sentence, Scoring.TEXT)
    messages.append(user(f"What is the {word} word of the sentence?"))
    return _follow_up("text", sentence, messages, words[0] if word == "first" else words[-1], Scoring.TEXT)


FOLLOW_UPS: tuple[Callable[[Random], Problem], ...] = (
    about_me, about_me, arithmetic_chain, about_a_list, about_a_word, another_word, about_a_text,
)  # fmt: skip


def follow_up(rng: Random) -> Problem:
    return rng.choice(FOLLOW_UPS)(rng)
