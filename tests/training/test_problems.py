"""The generators: both sides disjoint, every reference answer right by its own scoring, seeds repeat."""

from __future__ import annotations

from random import Random

import pytest

from remuda.evaluation.problem import Problem as StoredProblem
from remuda.evaluation.problem import read_problems
from remuda.evaluation.scoring import is_right
from remuda.evaluation.skills import SKILLS
from training.problems.arithmetic import arithmetic, working
from training.problems.held_out import EMBEDDED_COUNT, EMBEDDED_SEED, held_out_problems
from training.problems.offtopic import HANDWRITTEN_PROMPTS
from training.problems.pictures import Scene, Thing, counted
from training.problems.problem import Split, draw
from training.problems.recall import CHUNK_TOKENS, DISTANCES_CHUNKS, approximate_tokens, needle
from training.problems.words import number_in_words, to_words


@pytest.mark.parametrize("skill", sorted(SKILLS))
def test_reference_answers_are_right_and_empty_ones_are_not(skill: str) -> None:
    for problem in (drawn.stored() for drawn in held_out_problems(skill, 60, seed=3)):
        assert is_right(problem, problem.answer), problem
        assert not is_right(problem, "")
        assert not is_right(problem, "no idea")


@pytest.mark.parametrize("skill", sorted(SKILLS.keys() - {"off-topic"}))
def test_held_out_problems_are_on_their_side_and_repeat_with_the_seed(skill: str) -> None:
    first, again, other = (held_out_problems(skill, 40, seed) for seed in (1, 1, 2))
    assert all(problem.split is Split.HELD_OUT for problem in first)
    assert first == again != other


@pytest.mark.parametrize("skill", sorted(SKILLS))
def test_the_embedded_problems_are_held_out_ones(skill: str) -> None:
    """Compared as text: how a scene is drawn may change with Pillow."""
    drawn = [problem.stored() for problem in held_out_problems(skill, EMBEDDED_COUNT, EMBEDDED_SEED)]
    embedded = read_problems()[skill]
    assert sorted(map(text_of, embedded)) == sorted(map(text_of, drawn))
    assert len({problem.variant for problem in embedded[:50]}) > 0.8 * len({problem.variant for problem in embedded})


def text_of(problem: StoredProblem) -> str:
    parts = [part for message in problem.messages for part in message["content"] if isinstance(part, dict)]
    texts = [part["text"] for part in parts if part["type"] == "text"] or problem.messages
    return f"{problem.variant} {texts} {problem.answer} {problem.scoring} {problem.expected} {problem.tools}"


def test_wording_does_not_move_an_instance_across_the_split() -> None:
    sides: dict[str, set[Split]] = {}
    texts: dict[str, set[str]] = {}
    rng = Random(5)
    for _ in range(20_000):
        problem = arithmetic(rng)
        sides.setdefault(problem.key, set()).add(problem.split)
        texts.setdefault(problem.key, set()).add(str(problem.messages))
    assert all(len(found) == 1 for found in sides.values())
    assert max(map(len, texts.values())) > 5  # small products come up in many wordings
    held_out = sum(found == {Split.HELD_OUT} for found in sides.values()) / len(sides)
    assert 0.05 < held_out < 0.12


def test_what_can_only_be_known_by_heart_is_never_held_out() -> None:
    rng = Random(6)
    digits = [p for p in (to_words(rng) for _ in range(3000)) if len(p.key.split(":")[1]) == 1]
    assert {p.answer for p in digits} >= {"zero", "two"} and {p.split for p in digits} == {Split.TRAIN}


def test_counting_shapes_names_their_places_in_reading_order() -> None:
    things = [Thing("star", "red", 2, 0), Thing("star", "red", 0, 2), Thing("cross", "red", 1, 1)]
    assert counted(things) == "top right 1, center 2, bottom left 3: 3"
    assert counted([]) == "none: 0"


def test_draw_reports_a_generator_without_instances() -> None:
    def always_the_same(_: Random):  # type: ignore[no-untyped-def]
        return problem

    problem = draw(arithmetic, Random(0), Split.TRAIN)
    with pytest.raises(RuntimeError, match="always_the_same"):
        draw(always_the_same, Random(0), Split.HELD_OUT)


@pytest.mark.parametrize("operator, apply", [("+", int.__add__), ("-", int.__sub__), ("x", int.__mul__)])
def test_working_ends_in_the_result_and_every_step_is_equal(operator: str, apply) -> None:  # type: ignore[no-untyped-def]
    rng = Random(2)
    for _ in range(300):
        a, b = rng.randint(0, 99), rng.randint(0, 99)
        if operator == "x" and rng.random() < 0.5:
            a, b = rng.randint(100, 999), rng.randint(0, 9)
        a, b = (max(a, b), min(a, b)) if operator == "-" else (a, b)
        steps = working(operator, a, b).split(" = ")
        values = {eval_sum(step) for step in steps}  # every side of every "=" is the same number
        assert values == {apply(a, b)}


def eval_sum(text: str) -> int:
    """The value of "40 x 6 + 5 x 6" or "47 - 8"."""
    if " - " in text:
        left, right = text.split(" - ")
        return int(left) - int(right)
    total = 0
    for term in text.split(" + "):
        product = 1
        for factor in term.split(" x "):
            product *= int(factor)
        total += product
    return total


def test_number_words() -> None:
    assert number_in_words(0) == "zero"
    assert number_in_words(4821) == "four thousand eight hundred twenty-one"
    assert len({number_in_words(n) for n in range(10_000)}) == 10_000


@pytest.mark.parametrize("distance", DISTANCES_CHUNKS)
def test_a_needle_lies_as_far_from_its_question_as_it_says(distance: int) -> None:
    problem = needle(Random(distance), distance)
    text = problem.messages[0]["content"]
    statement = problem.answer
    behind = approximate_tokens(text.split(statement, 1)[1])
    assert abs(behind - distance * CHUNK_TOKENS) <= (40 if distance else 160)
    assert text.count(statement) == 1


def test_a_scene_is_drawn_the_same_each_time_and_shows_its_colours() -> None:
    things = (Thing("circle", "red", 0, 0), Thing("square", "blue", 2, 2))
    scene = Scene(3, 3, 40, "white", things, jitter=7)
    image = scene.draw()
    assert image.tobytes() == scene.draw().tobytes()
    assert image.size == (120, 120)
    red, _, blue = image.getpixel((20, 20))  # type: ignore[misc]
    assert red > 150 and blue < 100
    red, _, blue = image.getpixel((100, 100))  # type: ignore[misc]
    assert blue > 150 and red < 100


def test_twenty_prompts_are_written_by_hand() -> None:
    assert len(set(HANDWRITTEN_PROMPTS)) == 20
