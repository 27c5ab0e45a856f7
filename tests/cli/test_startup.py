"""What an operator reads while ranks start."""

from __future__ import annotations

import io
import re

import pytest

from remuda.cli.startup import StartupPrinter
from remuda.protocol.progress import PhaseProgress


@pytest.mark.parametrize(("ranks", "ending"), [(1, r" GB/s"), (2, r" GB/s a rank")])
def test_the_weights_end_with_how_fast_each_rank_read(ranks: int, ending: str) -> None:
    out = io.StringIO()
    printer = StartupPrinter(ranks, out)
    for rank in range(ranks):
        printer.progress(PhaseProgress(rank, "weights", 48 << 20, 48 << 20))
    total = 48 * ranks
    assert re.fullmatch(rf"  weights    {total} of {total} MiB, [\d.]+ s, [\d.]+{ending}\n", out.getvalue())


def test_a_phase_without_bytes_has_no_rate() -> None:
    out = io.StringIO()
    StartupPrinter(1, out).progress(PhaseProgress(0, "mesh", 1, 1))
    assert re.fullmatch(r"  mesh       [\d.]+ s\n", out.getvalue())
