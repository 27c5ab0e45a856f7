"""Results of `bench_layouts.py` beside a peer's, as Markdown: python benchmarks/gpu/tables.py PEER.jsonl OURS.jsonl ...

A cell is ours, then in brackets the peer's and the share of the bandwidth floor that ours reaches. Of several results
for a cell the last given counts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

Key = tuple[str, str, str]  # cards, model, layout
COLUMNS = ("b1", "b32", "b128", "throughput", "prefill", "closed64")
HEADS = ("b1 ms", "b32 ms", "b128 ms", "256 x 512/256 tok/s", "prefill 64 x 4096 tok/s", "64 x 1k/1k tok/s")


def read(paths: list[Path]) -> dict[Key, dict[str, Any]]:
    """Rows with a value, by what ran, by work."""
    found: dict[Key, dict[str, Any]] = {}
    for path in paths:
        for row in map(json.loads, path.read_text().splitlines()):
            if row.get("work") in COLUMNS and "value" in row:
                key = (_short(row.get("cards", "")), row["model"], row["layout"])
                found.setdefault(key, {})[row["work"]] = row
    return found


def _short(cards: str) -> str:
    """'4 x NVIDIA H100 80GB HBM3' -> '4 x H100'."""
    count, _, name = cards.partition(" x ")
    known = next((known for known in ("H100", "H200") if known in name), name)
    return f"{count} x {known}"


def cell(ours: dict[str, Any] | None, peer: dict[str, Any] | None) -> str:
    if ours is None and peer is None:
        return ""
    theirs = _number(peer["value"]) if peer else "-"
    if ours is None:
        return f"not run ({theirs})"
    share = f"; {ours['share']:.0%}" if ours.get("share") and ours["work"].startswith("b") else ""
    return f"**{_number(ours['value'])}** ({theirs}{share})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def main(peer: str, *ours: str) -> None:
    theirs, mine = read([Path(peer)]), read([Path(path) for path in ours])
    print("| cards, model, layout | " + " | ".join(HEADS) + " |")
    print("|---" * (1 + len(HEADS)) + "|")
    for key in [*theirs, *(key for key in mine if key not in theirs)]:
        cells = (cell(mine.get(key, {}).get(work), theirs.get(key, {}).get(work)) for work in COLUMNS)
        print(f"| {', '.join(key)} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
