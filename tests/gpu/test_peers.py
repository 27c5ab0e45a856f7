"""Kernels that write into peers' memory, on real GPUs: thousands of rounds of random sizes, delays and graphs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.parallel.peers.test_protocol import outputs_of

RANK_PROGRAM = Path(__file__).with_name("peers_rank.py")
ROUNDS = 10_000


@pytest.mark.parametrize("ranks", [ranks for ranks in (2, 4) if ranks <= torch.cuda.device_count()])
def test_ranks_agree_to_the_bit(ranks: int, tmp_path: Path) -> None:
    command = [sys.executable, str(RANK_PROGRAM), str(tmp_path / "store"), str(ranks)]
    processes = [
        subprocess.Popen([*command, str(rank), str(ROUNDS)], stdout=subprocess.PIPE, text=True) for rank in range(ranks)
    ]
    try:
        outputs = outputs_of(processes)
    finally:
        for process in processes:
            process.kill()
    assert len(set(outputs)) == 1, "ranks ended with different bits"
