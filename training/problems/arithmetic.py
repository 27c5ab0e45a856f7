"""Arithmetic: a + b and a - b with operands and results of 0 to 9999, a x b up to 99 x 99 and 999 x 9.

Products show their working (partial products, then the sum); the last number is the result.
"""

from __future__ import annotations

from random import Random

from remuda.evaluation.problem import Scoring
from training.problems.lexicon import words_of
from training.problems.problem import Problem, user

_SYMBOLS = {"+": ("+", "plus"), "-": ("-", "minus"), "x": ("x", "*", "times", "multiplied by", "×")}
_ASKS = (
    "What is {}?",
    "Calculate {}.",
    "Compute {}",
    "{} = ?",
    "{}",
    "How much is {}?",
    "Please work out {}.",
    "{} =",
    "Can you calculate {}?",
    "What's {}?",
    "Tell me the result of {}.",
    "Solve {}.",
    "What does {} equal?",
    "Evaluate {}.",
)
_STORIES = {
    "+": (
        "{name} has {a} {things} and gets {b} more. How many {things} does {name} have now?",
        "Add {b} to {a}.",
        "What is the sum of {a} and {b}?",
    ),
    "-": (
        "{name} has {a} {things} and gives away {b}. How many {things} are left?",
        "Subtract {b} from {a}.",
        "What is the difference between {a} and {b}?",
    ),
    "x": (
        "There are {a} boxes with {b} {things} each. How many {things} are there?",
        "Multiply {a} by {b}.",
        "What is the product of {a} and {b}?",
    ),
}
_THINGS = words_of("coins beads stones cards books pens nails cups apples buttons")


def working(operator: str, a: int, b: int) -> str:
    """The answer text: "47 + 38 = 85", or with the partial products: "36 x 47 = 1440 + 252 = 1692"."""
    if operator == "+":
        return f"{a} + {b} = {a + b}"
    if operator == "-":
        return f"{a} - {b} = {a - b}"
    if a < 10 and b < 10:
        return f"{a} x {b} = {a * b}"
    left, right = (a, b) if b < 100 else (b, a)
    if left < 10:
        left, right = right, left
    if right >= 10:  # two digits each: split the second factor
        parts = [left * (right // 10) * 10, left * (right % 10)]
        shown = f"{left} x {right // 10 * 10} + {left} x {right % 10}"
    else:  # one digit on the right: split the first factor
        digits = [int(d) * 10**place for place, d in zip(range(len(str(left)) - 1, -1, -1), str(left), strict=True)]
        parts = [digit * right for digit in digits]
        shown = " + ".join(f"{digit} x {right}" for digit in digits)
    steps = [f"{a} x {b}", shown, " + ".join(map(str, parts))]
    if len(parts) == 3:
        steps.append(f"{parts[0] + parts[1]} + {parts[2]}")
    return " = ".join([*steps, str(a * b)])


def number(rng: Random, digits: int) -> int:
    return rng.randint(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1)


def operands(rng: Random, operator: str) -> tuple[int, int]:
    """Every length of operand is about equally likely; the result has at most four digits and is not negative."""
    while True:
        if operator == "x":
            a, b = rng.choice(((2, 2), (2, 2), (2, 1), (3, 1), (1, 1)))
            pair = (number(rng, a), number(rng, b))
            return pair if rng.random() < 0.5 else pair[::-1]
        pair = (number(rng, rng.randint(1, 4)), number(rng, rng.randint(1, 4)))
        if operator == "+" and sum(pair) <= 9999:
            return pair
        if operator == "-":
            return max(pair), min(pair)


def arithmetic(rng: Random) -> Problem:
    operator = rng.choice("++--xxx")
    a, b = operands(rng, operator)
    if rng.random() < 0.2:
        name_and_things = {"name": rng.choice(("Ana", "Leo", "Nora", "Paul")), "things": rng.choice(_THINGS)}
        text = rng.choice(_STORIES[operator]).format(a=a, b=b, **name_and_things)
    else:
        symbol = rng.choice(_SYMBOLS[operator][:1] * 3 + _SYMBOLS[operator][1:])
        gap = "" if len(symbol) == 1 and symbol != "x" and rng.random() < 0.15 else " "
        text = rng.choice(_ASKS).format(f"{a}{gap}{symbol}{gap}{b}")
    low, high = (a, b) if operator == "-" else (min(a, b), max(a, b))
    variant = {"+": "add", "-": "subtract", "x": "multiply"}[operator]
    return Problem(
        "arithmetic", variant, f"{low}{operator}{high}", (user(text),), working(operator, a, b), Scoring.NUMBER
    )
