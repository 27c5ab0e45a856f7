"""The held-out problems of each skill, and the file of them that `remuda eval` asks.

python -m training.problems.held_out                                  # the embedded file, again
python -m training.problems.held_out --seed 7 --count 100 --out x.jsonl.gz && remuda eval --problems x.jsonl.gz
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from random import Random

from remuda.evaluation.problem import EMBEDDED, write_problems
from remuda.evaluation.skills import SKILLS
from training.problems.arithmetic import arithmetic
from training.problems.dialogue import follow_up
from training.problems.extraction import extraction
from training.problems.offtopic import off_topic
from training.problems.pictures import images
from training.problems.problem import Problem, Split, draw
from training.problems.recall import fact_list, held_out_needles
from training.problems.tools import tool_call
from training.problems.words import TASKS

EMBEDDED_COUNT, EMBEDDED_SEED = 300, 2025  # those of the model card


def _drawn(*makers: Callable[[Random], Problem]) -> Callable[[Random, int], list[Problem]]:
    """Held-out problems of the makers in turn, so that each gets the same share."""

    def held_out(rng: Random, count: int) -> list[Problem]:
        return [draw(makers[i % len(makers)], rng, Split.HELD_OUT) for i in range(count)]

    return held_out


def _recall(rng: Random, count: int) -> list[Problem]:
    lists = _drawn(fact_list)(rng, count // 4)
    return held_out_needles(rng, count - len(lists)) + lists


_MAKERS: dict[str, Callable[[Random, int], list[Problem]]] = {
    "arithmetic": _drawn(arithmetic),
    "words": _drawn(*TASKS),
    "recall": _recall,
    "follow-up": _drawn(follow_up),
    "extract": _drawn(extraction),
    "tools": _drawn(tool_call),
    "images": _drawn(images),
    "off-topic": lambda _, count: off_topic()[:count],
}


def held_out_problems(skill: str, count: int, seed: int) -> list[Problem]:
    """`count` held-out problems (off-topic: at most the 20 there are), the same for the same seed."""
    return _MAKERS[skill](Random(f"{skill}/{seed}"), count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=EMBEDDED_COUNT)
    parser.add_argument("--seed", type=int, default=EMBEDDED_SEED)
    parser.add_argument("--out", type=Path, default=EMBEDDED)
    args = parser.parse_args()
    problems = []
    for skill in SKILLS:
        drawn = held_out_problems(skill, args.count, args.seed)
        Random(args.seed).shuffle(drawn)  # whoever asks the first few gets all kinds
        problems += [problem.stored() for problem in drawn]
    write_problems(args.out, problems)
    print(f"{len(problems)} problems, {args.out.stat().st_size / 2**20:.2f} MiB: {args.out}")


if __name__ == "__main__":
    main()
