"""Pictures: scenes of coloured shapes on a grid, drawn with Pillow, and questions about one, two or wide ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import cos, pi, sin
from random import Random
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

from remuda.evaluation.problem import Message, Scoring
from training.problems.lexicon import with_article
from training.problems.problem import Problem, assistant, user

PAINTS = {
    "red": (220, 30, 40),
    "green": (30, 150, 60),
    "blue": (35, 70, 220),
    "yellow": (245, 215, 30),
    "orange": (245, 135, 20),
    "purple": (130, 50, 170),
    "black": (20, 20, 20),
    "white": (250, 250, 250),
}
BACKGROUNDS = {"white": (255, 255, 255), "gray": (170, 170, 170), "black": (0, 0, 0), "pale": (235, 228, 205)}
SHAPES = ("circle", "square", "triangle", "star", "cross")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
PLACES = {(r, c): " ".join((ROWS[r], COLUMNS[c])) if (r, c) != (1, 1) else "center" for r in range(3) for c in range(3)}


@dataclass(frozen=True, slots=True)
class Thing:
    shape: str
    colour: str
    row: int
    column: int


@dataclass(frozen=True, slots=True)
class Scene:
    """`rows` x `columns` cells of `cell` pixels, each empty or with one thing. `jitter` seeds sizes and offsets."""

    rows: int
    columns: int
    cell: int
    background: str
    things: tuple[Thing, ...]
    jitter: int

    def draw(self) -> Image.Image:
        rng = Random(self.jitter)
        wobble = [rng.randint(-8, 8) for _ in range(3)]
        paint = tuple(min(255, max(0, v + w)) for v, w in zip(BACKGROUNDS[self.background], wobble, strict=True))
        image = Image.new("RGB", (self.columns * self.cell, self.rows * self.cell), paint)
        pen = ImageDraw.Draw(image)
        for thing in self.things:
            radius = self.cell * rng.uniform(0.27, 0.42)
            slack = self.cell / 2 - radius - 1
            x = (thing.column + 0.5) * self.cell + rng.uniform(-slack, slack)
            y = (thing.row + 0.5) * self.cell + rng.uniform(-slack, slack)
            colour = tuple(min(255, max(0, v + rng.randint(-12, 12))) for v in PAINTS[thing.colour])
            _draw_shape(pen, thing.shape, x, y, radius, colour)
        return image


def _draw_shape(pen: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, colour: tuple[int, ...]) -> None:
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    elif shape == "square":
        side = r * 0.85
        pen.rectangle((x - side, y - side, x + side, y + side), fill=colour)
    elif shape == "triangle":
        pen.polygon([(x, y - r), (x - 0.95 * r, y + 0.8 * r), (x + 0.95 * r, y + 0.8 * r)], fill=colour)
    elif shape == "star":
        radii = (r, 0.42 * r)
        pen.polygon(
            [(x + radii[i % 2] * sin(i * pi / 5), y - radii[i % 2] * cos(i * pi / 5)) for i in range(10)], fill=colour
        )
    else:
        arm = 0.3 * r
        pen.rectangle((x - r, y - arm, x + r, y + arm), fill=colour)
        pen.rectangle((x - arm, y - r, x + arm, y + r), fill=colour)


def picture_message(scenes: Iterable[Scene], text: str, text_first: bool = False) -> Message:
    parts: list[Message] = [{"type": "scene", "scene": scene} for scene in scenes]
    written = {"type": "text", "text": text}
    return {"role": "user", "content": [written, *parts] if text_first else [*parts, written]}


def background_for(rng: Random, colours: Iterable[str]) -> str:
    return rng.choice(
        [name for name in BACKGROUNDS if name not in colours and not (name == "pale" and "white" in colours)]
    )


def scene(
    rng: Random,
    rows: int,
    columns: int,
    cell: int,
    looks: list[tuple[str, str]],
    cells: list[tuple[int, int]] | None = None,
) -> Scene:
    """Things of the given (shape, colour) in the given cells, or in random ones."""
    places = cells or rng.sample([(r, c) for r in range(rows) for c in range(columns)], len(looks))
    things = tuple(Thing(shape, colour, r, c) for (shape, colour), (r, c) in zip(looks, places, strict=True))
    background = background_for(rng, {colour for _, colour in looks})
    return Scene(rows, columns, cell, background, things, rng.randrange(1 << 30))


def look(rng: Random) -> tuple[str, str]:
    return rng.choice(SHAPES), rng.choice(list(PAINTS))


def distinct_looks(rng: Random, count: int) -> list[tuple[str, str]]:
    return rng.sample([(s, c) for s in SHAPES for c in PAINTS if c not in ("black", "white")], count)


def _key(*scenes: Scene) -> str:
    """The instance: what is where, and the jitter that fixes every pixel."""
    return ";".join(f"{s.jitter}:{[(t.shape, t.colour, t.row, t.column) for t in s.things]}" for s in scenes)


def _pictured(
    rng: Random, variant: str, scenes: list[Scene], text: str, answer: str, scoring: Scoring = Scoring.TEXT
) -> Problem:
    message = picture_message(scenes, text, text_first=rng.random() < 0.25)
    return Problem("images", variant, f"{variant} {_key(*scenes)}", (message,), answer, scoring)


def single_thing(rng: Random) -> Scene:
    size = rng.choice((56, 80, 100, 112, 128, 160, 200, 224))
    if rng.random() < 0.5:
        return scene(rng, 1, 1, size, [look(rng)])
    return scene(rng, 3, 3, max(size, 100) // 3, [look(rng)])


_COLOUR_ASKS = (
    "What color is the shape?",
    "Which color is the {shape}?",
    "What color is the {shape}?",
    "Name the color.",
    "What color is it?",
)
_SHAPE_ASKS = (
    "What shape is it?",
    "Which shape is shown?",
    "What shape is this?",
    "Name the shape.",
    "What is the shape of the {colour} thing?",
)
_BOTH_ASKS = (
    "What is in the image?",
    "Describe the image.",
    "What do you see?",
    "What is this?",
    "What is in this picture?",
)


def about_single(rng: Random, drawn: Scene) -> Problem:
    thing = drawn.things[0]
    variant, asks, answer = rng.choice(
        (
            ("colour", _COLOUR_ASKS, thing.colour),
            ("shape", _SHAPE_ASKS, thing.shape),
            ("describe", _BOTH_ASKS, with_article(named(thing))),
        )
    )
    return _pictured(rng, variant, [drawn], rng.choice(asks).format(shape=thing.shape, colour=thing.colour), answer)


def named(thing: Thing) -> str:
    return f"{thing.colour} {thing.shape}"


def colour_or_shape(rng: Random) -> Problem:
    return about_single(rng, single_thing(rng))


_GRID_CELLS = (37, 37, 37, 48, 56, 74)  # pixels; the larger ones make images of several tiles


def crowd(rng: Random) -> Scene:
    """One to seven things of few looks on a 3 x 3 grid, for counting."""
    palette, shapes = rng.sample(list(PAINTS), 2), rng.sample(SHAPES, 2)
    looks = [(rng.choice(shapes), rng.choice(palette)) for _ in range(rng.randint(1, 7))]
    return scene(rng, 3, 3, rng.choice(_GRID_CELLS), looks)


def about_crowd(rng: Random, drawn: Scene) -> Problem:
    """How many shapes, of a colour, or of a kind; the reply counts them one by one."""
    colour = rng.choice(drawn.things).colour if rng.random() < 0.8 else rng.choice(list(PAINTS))
    shape = rng.choice(drawn.things).shape if rng.random() < 0.8 else rng.choice(SHAPES)
    asks = {
        (
            "How many shapes are there?",
            "How many shapes are in the image?",
            "Count the shapes.",
            "How many shapes do you see?",
        ): drawn.things,
        (f"How many {colour} shapes are there?", f"Count the {colour} shapes."): tuple(
            t for t in drawn.things if t.colour == colour
        ),
        (
            f"How many {plural(shape)} are there?",
            f"Count the {plural(shape)}.",
            f"How many {plural(shape)} do you see?",
        ): tuple(t for t in drawn.things if t.shape == shape),
    }
    questions = rng.choice(list(asks))
    return _pictured(rng, "count", [drawn], rng.choice(questions), counted(asks[questions]), Scoring.NUMBER)


def counted(things: Iterable[Thing]) -> str:
    """ "top left 1, center 2: 2", row by row; the last number is the result."""
    places = [place_of(thing) for thing in in_reading_order(things)]
    return f"{', '.join(f'{place} {i}' for i, place in enumerate(places, 1)) or 'none'}: {len(places)}"


def in_reading_order(things: Iterable[Thing]) -> list[Thing]:
    return sorted(things, key=lambda thing: (thing.row, thing.column))


def count(rng: Random) -> Problem:
    return about_crowd(rng, crowd(rng))


def plural(shape: str) -> str:
    return f"{shape}es" if shape == "cross" else f"{shape}s"


def group(rng: Random) -> Scene:
    """One to four different things on a 3 x 3 grid."""
    return scene(rng, 3, 3, rng.choice(_GRID_CELLS), distinct_looks(rng, rng.randint(1, 4)))


def about_group(rng: Random, drawn: Scene) -> Problem:
    """Where a thing is, what is in a place, or everything with its place, row by row."""
    thing = rng.choice(drawn.things)
    kind = rng.random()
    if kind < 0.5:
        text = rng.choice(
            ("Where is the {}?", "In which part of the image is the {}?", "What is the position of the {}?")
        )
        return _pictured(rng, "position", [drawn], text.format(named(thing)), place_of(thing))
    if kind < 0.75:
        text = rng.choice(("What is in the {}?", "Which shape is in the {}?", "What is at the {}?")).format(
            place_of(thing)
        )
        return _pictured(rng, "position", [drawn], text, with_article(named(thing)))
    text = rng.choice(
        ("List everything in the image.", "List all shapes and where they are.", "What is where in the image?")
    )
    listed = ", ".join(f"{named(t)} {place_of(t)}" for t in in_reading_order(drawn.things))
    return _pictured(rng, "inventory", [drawn], text, listed)


def place_of(thing: Thing) -> str:
    return PLACES[thing.row, thing.column]


def position(rng: Random) -> Problem:
    return about_group(rng, group(rng))


def pair(rng: Random) -> list[Scene]:
    """Two pictures of one thing each, often of the same shape or colour."""
    first, second = look(rng), look(rng)
    if rng.random() < 0.3:
        second = (first[0], second[1])
    elif rng.random() < 0.4:
        second = (second[0], first[1])
    size = rng.choice((56, 80, 100, 112))
    return [scene(rng, 1, 1, size, [each]) for each in (first, second)]


def about_pair(rng: Random, drawn: list[Scene]) -> Problem:
    """Whether colours or shapes are equal, which picture shows a colour, or what both show."""
    first, second = ((thing.shape, thing.colour) for each in drawn for thing in each.things)
    kind = rng.choice(("same-colour", "same-shape", "which", "both"))
    if kind == "same-colour":
        text = rng.choice(
            (
                "Do both images show the same color?",
                "Is the color the same in both images?",
                "Are the two colors equal?",
            )
        )
        answer = "yes" if first[1] == second[1] else f"no, {first[1]} and {second[1]}"
    elif kind == "same-shape":
        text = rng.choice(
            (
                "Do both images show the same shape?",
                "Is the shape the same in both images?",
                "Are the two shapes equal?",
            )
        )
        answer = "yes" if first[0] == second[0] else f"no, {first[0]} and {second[0]}"
    elif kind == "which" and first[1] != second[1]:
        which = rng.randrange(2)
        text = rng.choice(("Which image shows something {}?", "Which image is the {} one?")).format(
            (first, second)[which][1]
        )
        answer = ("the first", "the second")[which]
    else:
        text = rng.choice(("Describe both images.", "What is in the two images?", "Compare the two images."))
        answer = f"{first[1]} {first[0]}, {second[1]} {second[0]}"
    return _pictured(rng, "compare", drawn, text, answer)


def compare(rng: Random) -> Problem:
    return about_pair(rng, pair(rng))


_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")


def row_of_things(rng: Random) -> Scene:
    """Two to six things in a row: an image of two to six tiles."""
    length = rng.randint(2, 6)
    return scene(
        rng,
        1,
        length,
        rng.choice((90, 112, 112, 120)),
        [look(rng) for _ in range(length)],
        [(0, c) for c in range(length)],
    )


def about_row(rng: Random, drawn: Scene) -> Problem:
    things = drawn.things
    place = rng.randrange(len(things))
    ordinal = rng.choice((_ORDINALS[place], *(("last",) if place == len(things) - 1 else ())))
    asks = {
        ("List the colors from left to right.", "Which colors do you see from left to right?"): ", ".join(
            t.colour for t in things
        ),
        ("List the shapes from left to right.", "Which shapes do you see from left to right?"): ", ".join(
            t.shape for t in things
        ),
        (f"What color is the {ordinal} shape from the left?",): things[place].colour,
        (f"What is the {ordinal} shape from the left?", f"Which shape is the {ordinal} from the left?"): things[
            place
        ].shape,
        ("How many shapes are in the row?", "How many shapes are there?", "Count the shapes."): str(len(things)),
    }
    questions = rng.choice(list(asks))
    return _pictured(rng, "wide", [drawn], rng.choice(questions), asks[questions])


def wide(rng: Random) -> Problem:
    return about_row(rng, row_of_things(rng))


def image_follow_up(rng: Random) -> Problem:
    drawn = single_thing(rng)
    thing = drawn.things[0]
    turns = [
        (rng.choice(("What shape is it?", "What shape is this?")), thing.shape),
        (rng.choice(("What color is it?", "And the color?")), thing.colour),
    ]
    if rng.random() < 0.5:
        turns = [
            (rng.choice(("What color is it?", "Name the color.")), thing.colour),
            (rng.choice(("What shape is it?", "And the shape?")), thing.shape),
        ]
    (ask, reply), (last, answer) = turns
    messages = (picture_message([drawn], ask), assistant(reply), user(last))
    return Problem("images", "follow-up", f"follow-up {_key(drawn)}", messages, answer)


def images(rng: Random) -> Problem:
    return rng.choice((colour_or_shape, colour_or_shape, count, position, compare, wide, image_follow_up))(rng)


class Questioned(NamedTuple):
    """What bears several questions, for training: how to draw it and how to ask about it."""

    draw: Callable[[Random], Any]  # a scene, or several
    ask: Callable[[Random, Any], Problem]
    weight: float  # the harder, the more often


QUESTIONED = (
    Questioned(single_thing, about_single, 0.5),
    Questioned(crowd, about_crowd, 2.0),
    Questioned(group, about_group, 1.5),
    Questioned(pair, about_pair, 1.5),
    Questioned(row_of_things, about_row, 1.0),
)
