"""The loss curve of one or several logs as a PNG, drawn with Pillow alone.

python -m training.curve LOG... --out training/loss.png
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from PIL import Image, ImageDraw

WIDTH, HEIGHT, MARGIN = 900, 420, 60
COLOURS = ((200, 60, 40), (40, 90, 200), (40, 150, 80))
LOSS_RANGE = (0.001, 10.0)  # the vertical axis, logarithmic

Points = list[tuple[float, float]]


def read(log: Path) -> Points:
    """(million tokens, loss) of every line that has a finite loss."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [
        (line["step"] * 32768 / 1e6, line["loss"]) for line in lines if "loss" in line and math.isfinite(line["loss"])
    ]


def draw(curves: list[Points]) -> Image.Image:
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(image)
    longest = max(x for points in curves for x, _ in points)
    low, high = (math.log10(value) for value in LOSS_RANGE)

    def place(tokens: float, loss: float) -> tuple[float, float]:
        down = (high - math.log10(min(max(loss, LOSS_RANGE[0]), LOSS_RANGE[1]))) / (high - low)
        return MARGIN + (WIDTH - 2 * MARGIN) * tokens / longest, MARGIN + (HEIGHT - 2 * MARGIN) * down

    for power in range(round(low), round(high) + 1):
        start, end = place(0, 10**power), place(longest, 10**power)
        pen.line([start, end], fill=(225, 225, 225))
        pen.text((8, start[1] - 6), f"{10.0**power:g}", fill="black")
    for quarter in range(5):
        tokens = longest * quarter / 4
        x, y = place(tokens, LOSS_RANGE[0])
        pen.text((x - 12, y + 8), f"{tokens:.0f}M", fill="black")
    pen.text((MARGIN, 20), "training loss (trained tokens, weighted) by tokens", fill="black")
    for points, colour in zip(curves, COLOURS, strict=False):
        pen.line([place(x, y) for x, y in points], fill=colour, width=2)
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    draw([read(log) for log in args.logs]).save(args.out)


if __name__ == "__main__":
    main()
