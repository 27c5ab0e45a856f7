"""Our figures over the peers', against the bars of docs/performance.md.

    python benchmarks/compare_peers.py RESULT_FILE...

Reads `RESULT {json}` lines (any other line is skipped) of our benchmarks and of the peers' logs. Ratios only mean
something when both sides were measured on the same quiet machine in one session.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Result = dict[str, Any]


@dataclass(frozen=True)
class Bar:
    """`figure` of ours must be at least `ratio` times the peer's (at most, if `lower_is_better`)."""

    model: str
    figure: str
    peer: str
    ratio: float
    lower_is_better: bool = False


def _bars() -> Iterable[Bar]:
    for model, b1, c16, prefill in (
        ("l4-tiny", 2.0, 1.5, 1.2), ("l4-small", 1.2, 1.3, 1.1),
        ("llama-160m", 1.2, 1.3, 1.1), ("llama-1b", 1.2, 1.3, 1.1),
    ):  # fmt: skip
        yield Bar(model, "b1_decode_tok_s", "vllm-cpu", b1)
        yield Bar(model, "c16_tok_s", "vllm-cpu", c16)
        yield Bar(model, "prefill_tok_s", "vllm-cpu", prefill)
        if model != "l4-tiny":
            yield Bar(model, "b1_decode_tok_s", "llama.cpp", 0.95)
    yield Bar("l4-tiny", "output_throughput", "vllm serve", 1.5)
    for figure in ("p99_ttft_ms", "mean_tpot_ms"):
        yield Bar("l4-tiny", figure, "vllm serve", 1.0, lower_is_better=True)


LAYOUT_BAR = 0.85  # TP2 and PP2 against our own TP1, c16, l4-tiny


def read(paths: Iterable[Path]) -> list[Result]:
    found = []
    for path in paths:
        for line in path.read_text(errors="replace").splitlines():
            if line.startswith("RESULT {"):
                found.append(json.loads(line.removeprefix("RESULT ")))
    return found


def layout(result: Result) -> tuple[int, int]:
    options = result.get("opts", {})
    return int(options.get("tp", 1)), int(options.get("pp", 1))


def pick(results: list[Result], peer: str, model: str, figure: str, tp: int = 1, pp: int = 1) -> float | None:
    """The last value measured; None if there is none."""
    for result in reversed(results):
        same_model = str(result.get("model", "")).split(".")[0] == model
        if result.get("peer") == peer and same_model and figure in result and layout(result) == (tp, pp):
            return float(result[figure])
    return None


def row(name: str, ours: float | None, theirs: float | None, bar: float, lower: bool = False) -> str:
    if ours is None or theirs is None:
        return f"{name:<48}{'not measured':>14}"
    ratio = ours / theirs
    verdict = "ok" if (ratio <= bar if lower else ratio >= bar) else "BELOW" if not lower else "ABOVE"
    return (
        f"{name:<48}{ours:>12,.1f}{theirs:>12,.1f}{ratio:>9.2f}{('<=' if lower else '>=') + f' {bar:g}':>9}  {verdict}"
    )


def main() -> None:
    results = read(map(Path, sys.argv[1:]))
    if not results:
        sys.exit(__doc__)
    print(f"{'':<48}{'remuda':>12}{'peer':>12}{'ratio':>9}{'bar':>9}")
    for bar in _bars():
        ours = pick(results, "remuda", bar.model, bar.figure)
        theirs = pick(results, bar.peer, bar.model, bar.figure)
        print(row(f"{bar.model} {bar.figure} / {bar.peer}", ours, theirs, bar.ratio, bar.lower_is_better))
    alone = pick(results, "remuda", "l4-tiny", "c16_tok_s")
    for tp, pp in ((2, 1), (1, 2)):
        ours = pick(results, "remuda", "l4-tiny", "c16_tok_s", tp, pp)
        print(row(f"l4-tiny c16_tok_s TP{tp} PP{pp} / our TP1", ours, alone, LAYOUT_BAR))


if __name__ == "__main__":
    main()
