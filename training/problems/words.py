"""Small text tasks: sort, reverse, count, spell, change case, next weekday and month, number words."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from remuda.evaluation.problem import Scoring
from training.problems.lexicon import (
    ANIMALS,
    EVENTS,
    FOODS,
    MONTHS,
    NAMES,
    NOUNS,
    WEEKDAYS,
    any_word,
    filler_sentence,
    words_of,
)  # fmt: skip
from training.problems.problem import Problem, user

_ONES = words_of(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = words_of("- - twenty thirty forty fifty sixty seventy eighty ninety")


def number_in_words(n: int) -> str:
    """0 to 9999, as "four thousand eight hundred twenty-one"."""
    if n < 20:
        return _ONES[n]
    if n < 100:
        return _TENS[n // 10] + (f"-{_ONES[n % 10]}" if n % 10 else "")
    unit, name = (1000, "thousand") if n >= 1000 else (100, "hundred")
    rest = f" {number_in_words(n % unit)}" if n % unit else ""
    return f"{_ONES[n // unit]} {name}{rest}"


def shown(rng: Random, word: str) -> str:
    """The word as a user may write it: in double quotes, in single quotes, or bare."""
    return rng.choice((f'"{word}"', f'"{word}"', word, f"'{word}'"))


def some_items(rng: Random, least: int = 3, most: int = 6) -> list[str]:
    pool = rng.choice((NOUNS, FOODS, ANIMALS, NAMES))
    return rng.sample(pool, rng.randint(least, most))


def listed(rng: Random, items: list[str]) -> str:
    return ", ".join(items) if rng.random() < 0.8 else f"{', '.join(items[:-1])} and {items[-1]}"


def _problem(
    variant: str, key: str, text: str, answer: str, scoring: Scoring = Scoring.TEXT, by_heart: bool = False
) -> Problem:
    return Problem("words", variant, f"{variant}:{key}", (user(text),), answer, scoring, by_heart=by_heart)


def sort_words(rng: Random) -> Problem:
    items = some_items(rng, 3, 5)
    ask = rng.choice((
        "Sort these words alphabetically: {}", "Put these words in alphabetical order: {}", "Sort alphabetically: {}",
        "Arrange in alphabetical order: {}.", "Sort the list {} from A to Z.", "Please sort these words: {}",
        "Can you sort these words? {}", "Sort: {}",
    ))  # fmt: skip
    return _problem("sort-words", " ".join(sorted(items)), ask.format(listed(rng, items)), ", ".join(sorted(items)))


def sort_numbers(rng: Random) -> Problem:
    items = rng.sample(range(100), rng.randint(3, 6))
    down = rng.random() < 0.35
    ask = rng.choice((
        "Sort these numbers in descending order: {}", "Sort {} from largest to smallest.",
        "Put these numbers in order, largest first: {}",
    ) if down else (
        "Sort these numbers: {}", "Sort {} from smallest to largest.", "Sort these numbers in ascending order: {}",
        "Put these numbers in order: {}", "Arrange these numbers from smallest to largest: {}.", "Sort: {}",
    ))  # fmt: skip
    ordered = ", ".join(map(str, sorted(items, reverse=down)))
    return _problem("sort-numbers", f"{down}{sorted(items)}", ask.format(listed(rng, list(map(str, items)))), ordered)


def reverse_word(rng: Random) -> Problem:
    word = any_word(rng)
    ask = rng.choice(
        (
            "Reverse the word {}.",
            "Reverse {}",
            "Write {} backwards.",
            "What is {} spelled backwards?",
            "Reverse the letters of {}.",
            "Spell {} backwards.",
            "Can you reverse the word {}?",
        )
    )
    return _problem("reverse-word", word, ask.format(shown(rng, word)), word[::-1])


def reverse_list(rng: Random) -> Problem:
    items = [str(n) for n in rng.sample(range(100), rng.randint(3, 6))] if rng.random() < 0.4 else some_items(rng)
    ask = rng.choice(
        (
            "Reverse this list: {}",
            "Reverse the order of {}",
            "Write this list in reverse order: {}",
            "Reverse the list {}.",
            "List these in reverse order: {}",
        )
    )
    return _problem("reverse-list", " ".join(items), ask.format(", ".join(items)), ", ".join(items[::-1]))


def count_letters(rng: Random) -> Problem:
    word = any_word(rng)
    ask = rng.choice((
        "How many letters are in {}?", "How many letters does the word {} have?", "Count the letters in {}.",
        "How long is the word {}?", "How many letters does {} have?", "What is the number of letters in {}?",
    ))  # fmt: skip
    answer = f"{'-'.join(word)}: {len(word)}"
    return _problem("count-letters", word, ask.format(shown(rng, word)), answer, Scoring.NUMBER)


def count_letter(rng: Random) -> Problem:
    word = any_word(rng)
    letter = rng.choice(word) if rng.random() < 0.85 else rng.choice("abcdefghijklmnopqrstuvwxyz")
    ask = rng.choice((
        "How many times does the letter {letter} appear in {word}?", "How many {letter}'s are in {word}?",
        "Count the letter {letter} in {word}.", 'How often does "{letter}" occur in {word}?',
        "How many times is {letter} in the word {word}?",
    ))  # fmt: skip
    marked, seen = [], 0
    for character in word:  # spelled with a running count behind each hit
        seen += character == letter
        marked.append(f"{character}({seen})" if character == letter else character)
    text = ask.format(letter=letter, word=shown(rng, word))
    return _problem("count-letter", f"{word}/{letter}", text, f"{'-'.join(marked)}: {seen}", Scoring.NUMBER)


def count_items(rng: Random) -> Problem:
    items = some_items(rng, 3, 9)
    ask = rng.choice((
        "How many items are in this list: {}?", "Count the items: {}", "How many words are in the list {}?",
        "How many things are listed here? {}", "Count these: {}",
    ))  # fmt: skip
    numbered = ", ".join(f"{item} {i}" for i, item in enumerate(items, 1))
    return _problem(
        "count-items", " ".join(items), ask.format(", ".join(items)), f"{numbered}: {len(items)}", Scoring.NUMBER
    )


def spell(rng: Random) -> Problem:
    word = any_word(rng)
    ask = rng.choice((
        "Spell {}.", "Spell the word {}.", "How do you spell {}?", "Spell {} letter by letter.", "Can you spell {}?",
        "Write the letters of {} one by one.", "How is {} spelled?",
    ))  # fmt: skip
    return _problem("spell", word, ask.format(shown(rng, word)), "-".join(word))


def case(rng: Random) -> Problem:
    plain = (
        any_word(rng)
        if rng.random() < 0.6
        else " ".join(filler_sentence(rng).rstrip(".").lower().split()[: rng.randint(2, 5)])
    )
    change, ask = rng.choice(
        (
            (
                "upper",
                (
                    "Write {} in upper case.",
                    "Convert {} to uppercase.",
                    "Put {} in capital letters.",
                    "Make {} upper case.",
                    "Uppercase {}",
                ),
            ),
            (
                "lower",
                (
                    "Write {} in lower case.",
                    "Convert {} to lowercase.",
                    "Put {} in small letters.",
                    "Make {} lower case.",
                    "Lowercase {}",
                ),
            ),
            (
                "title",
                (
                    "Write {} in title case.",
                    "Convert {} to title case.",
                    "Capitalize each word of {}.",
                    "Make {} title case.",
                ),
            ),
        )
    )
    answer = {"upper": plain.upper(), "lower": plain, "title": plain.title()}[change]
    given = plain if change != "lower" else rng.choice((plain.upper(), plain.title()))
    text = rng.choice(ask).format(f'"{given}"' if " " in plain or rng.random() < 0.6 else given)
    return _problem("case", f"{change}/{plain}", text, answer)


def _calendar(rng: Random, variant: str, names: list[str], unit: str, farthest: int) -> Problem:
    """Tables of 7 and 12 are too small to hold rows out: the held-out instances are new people and events."""
    start = rng.randrange(len(names))
    step = 1 if rng.random() < 0.3 else rng.randint(1, farthest)
    back = rng.random() < 0.3
    end = names[(start - step if back else start + step) % len(names)]
    name, event = rng.choice(NAMES), rng.choice(EVENTS)
    units = unit if step == 1 else f"{unit}s"
    moved = "earlier" if back else "later"
    one = f"What {unit} comes {'before' if back else 'after'} {names[start]}?"
    if step == 1 and rng.random() < 0.4:
        plain = rng.choice((one, f"Which {unit} is {'before' if back else 'after'} {names[start]}?", one))
        text = f"{name} has a {event} in mind. {plain}" if rng.random() < 0.5 else plain
        key = text
    else:
        key = f"{name} {event} {start} {step} {back}"
        text = rng.choice(
            (
                f"The {event} of {name} is {'in' if unit == 'month' else 'on'} {names[start]}. "
                f"It moves {step} {units} {moved}. Which {unit} is that?",
                f"{name} has a {event} planned for {names[start]}. Which {unit} is {step} {units} {moved}?",
                f"What {unit} is {step} {units} {'before' if back else 'after'} {names[start]}, "
                f"when {name} has a {event}?",
            )
        )
    return _problem(variant, key, text, end)


def weekday(rng: Random) -> Problem:
    return _calendar(rng, "weekday", WEEKDAYS, "day", 6)


def month(rng: Random) -> Problem:
    return _calendar(rng, "month", MONTHS, "month", 6)


def to_words(rng: Random) -> Problem:
    n = rng.randrange(10 ** rng.randint(1, 4)) if rng.random() < 0.7 else rng.randrange(10000)
    ask = rng.choice(
        (
            "Write {} in words.",
            "Spell out the number {}.",
            "How is {} written in words?",
            "Write the number {} in words.",
            "What is {} in words?",
            "Write {} as words.",
        )
    )
    return _problem("number-to-words", str(n), ask.format(n), number_in_words(n), by_heart=n < 10)


def from_words(rng: Random) -> Problem:
    n = rng.randrange(10 ** rng.randint(1, 4)) if rng.random() < 0.7 else rng.randrange(10000)
    ask = rng.choice((
        "Write {} in digits.", "Write {} as a number.", "What is {} in digits?", "Write the number {} with digits.",
        "Convert {} to digits.",
    ))  # fmt: skip
    words = number_in_words(n)
    text = ask.format(f'"{words}"' if rng.random() < 0.3 else words)
    return _problem("words-to-number", str(n), text, str(n), Scoring.NUMBER, by_heart=n < 10)


TASKS: tuple[Callable[[Random], Problem], ...] = (
    sort_words, sort_numbers, reverse_word, reverse_list, count_letters, count_letter, count_items, spell, case,
    weekday, month, to_words, from_words,
)  # fmt: skip


def words(rng: Random) -> Problem:
    return rng.choice(TASKS)(rng)
