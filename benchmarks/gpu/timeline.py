"""When the stages of a pipeline worked: a picture and utilisations, of what `--trace-dir` has written.

    python benchmarks/gpu/bench_layouts.py MODEL_DIR OUT.jsonl -tp 2 -pp 2 --work b128 --trace-dir traces
    python benchmarks/gpu/timeline.py traces --png timeline.png --json timeline.jsonl

Looked at is the longest run of decode steps with nearly as many rows as ever. A rank is busy from the moment at which
a step's input is there to the end of the step; utilisation is that over the time from the first step to the last.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

WIDTH, LANE, MARGIN, TOP = 1600, 46, 150, 60
COLOURS = ("#3b6fb6", "#e0803a", "#4e9a57", "#a1529a", "#8a6d3b", "#2a9d8f")
NEARLY = 0.9  # of the most rows


@dataclass(frozen=True)
class Step:
    step: int
    rows: int
    tokens: int
    begin_s: float
    end_s: float


@dataclass
class Rank:
    stage: int
    tp_rank: int
    steps: list[Step]

    @property
    def span_s(self) -> float:
        return self.steps[-1].end_s - self.steps[0].begin_s

    @property
    def utilisation(self) -> float:
        """Steps of a rank follow one another: none overlaps the next."""
        return sum(step.end_s - step.begin_s for step in self.steps) / self.span_s

    @property
    def gaps_us(self) -> list[float]:
        pairs = zip(self.steps, self.steps[1:], strict=False)
        return [1e6 * (after.begin_s - before.end_s) for before, after in pairs]


def read(folder: Path) -> list[Rank]:
    """Every rank, by stage and TP rank."""
    ranks = []
    for path in folder.glob("rank-*.json"):
        told = json.loads(path.read_text())
        ranks.append(Rank(told["stage"], told["tp_rank"], [Step(**step) for step in told["steps"]]))
    if not ranks:
        raise SystemExit(f"{folder} has no rank-*.json: run something with --trace-dir {folder}, to its end")
    return sorted(ranks, key=lambda rank: (rank.stage, rank.tp_rank))


def steady(ranks: list[Rank]) -> list[Rank]:
    """The same ranks with the steps of the longest full run, its ends left out."""
    steps = ranks[0].steps
    most = max((step.rows for step in steps if step.rows == step.tokens), default=0)
    runs: list[list[int]] = [[]]
    for step in steps:
        if step.rows == step.tokens and step.rows >= NEARLY * most:
            runs[-1].append(step.step)
        elif runs[-1]:
            runs.append([])
    longest = max(runs, key=len)
    chosen = set(longest[len(longest) // 10 : len(longest) - len(longest) // 10])
    return [Rank(rank.stage, rank.tp_rank, [s for s in rank.steps if s.step in chosen]) for rank in ranks]


def summary(ranks: list[Rank]) -> dict[str, object]:
    stages = sorted({rank.stage for rank in ranks})
    return {
        "steps": len(ranks[0].steps),
        "rows": round(statistics.mean(step.rows for step in ranks[0].steps), 1),
        "ms_per_step": round(1e3 * ranks[0].span_s / len(ranks[0].steps), 4),
        "utilisation": [
            round(statistics.mean(rank.utilisation for rank in ranks if rank.stage == stage), 4) for stage in stages
        ],
        "gap_us": [
            round(statistics.mean(gap for rank in ranks if rank.stage == stage for gap in rank.gaps_us), 1)
            for stage in stages
        ],
    }


def draw(ranks: list[Rank], title: str, window_ms: float) -> Image.Image:
    """A lane for each rank over the middle of the run; a colour for each of the micro-batches in turn."""
    first = ranks[0].steps[len(ranks[0].steps) // 2].begin_s
    scale = (WIDTH - MARGIN - 20) / (window_ms * 1e-3)
    picture = Image.new("RGB", (WIDTH, TOP + LANE * len(ranks) + 50), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=16)
    pen.text((12, 16), title, "black", ImageFont.load_default(size=19))
    cohorts = 1 + max(rank.stage for rank in ranks)
    for lane, rank in enumerate(ranks):
        top = TOP + lane * LANE
        pen.text((12, top + 10), f"stage {rank.stage}, TP {rank.tp_rank}", "black", font)
        for step in rank.steps:
            left, right = (MARGIN + (at - first) * scale for at in (step.begin_s, step.end_s))
            if right > MARGIN and left < WIDTH - 20:
                box = (max(left, MARGIN), top + 4, min(right, WIDTH - 20), top + LANE - 4)
                pen.rectangle(box, COLOURS[step.step % max(cohorts, 2) % len(COLOURS)], "white")
    bottom = TOP + LANE * len(ranks)
    for tick in range(11):
        x = MARGIN + tick * (WIDTH - MARGIN - 20) / 10
        pen.line((x, bottom, x, bottom + 6), "black")
        pen.text((x - 24, bottom + 10), f"{window_ms * tick / 10:.0f} ms", "black", font)
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--png", type=Path)
    parser.add_argument("--json", type=Path, help="append the summary to this file")
    parser.add_argument("--name", default="", help="of the model and layout, for title and summary")
    parser.add_argument("--window-ms", type=float, default=100.0, help="time that the picture shows")
    args = parser.parse_args()
    ranks = steady(read(args.folder))
    figures = {"name": args.name, **summary(ranks)}
    print(json.dumps(figures))
    if args.json:
        with args.json.open("a") as file:
            file.write(json.dumps(figures) + "\n")
    if args.png:
        shares = ", ".join(f"stage {i} {share:.1%}" for i, share in enumerate(figures["utilisation"]))
        title = f"{args.name} {figures['rows']} rows, {figures['ms_per_step']} ms per step: busy {shares}"
        draw(ranks, title.strip(), args.window_ms).save(args.png)


if __name__ == "__main__":
    main()
