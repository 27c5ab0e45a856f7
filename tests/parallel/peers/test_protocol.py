"""The kernels that GPUs of a host exchange rows, in Triton's interpreter: a process per rank over shared memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def outputs_of(processes: list[subprocess.Popen[str]]) -> list[str]:
    """What they print. The first that fails is the end: the others would wait for it in vain."""
    with ThreadPoolExecutor(len(processes)) as waiting:
        for ended in as_completed([waiting.submit(ended_well, process) for process in processes]):
            if not ended.result():
                for process in processes:
                    process.kill()
                raise AssertionError("a rank failed; its traceback is above")
    return [process.stdout.read() for process in processes if process.stdout]


def ended_well(process: subprocess.Popen[str]) -> bool:
    return process.wait(timeout=200) == 0


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_agree_to_the_bit_over_rounds_of_random_sizes_and_delays(ranks: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
        command = [sys.executable, "-m", "tests.parallel.peers.rank", f"{folder}/store", str(ranks)]
        processes = [
            subprocess.Popen([*command, str(rank)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
            for rank in range(ranks)
        ]
        try:
            outputs = outputs_of(processes)
        finally:
            for process in processes:
                process.kill()
    assert len(set(outputs)) == 1, "ranks ended with different bits"
    assert not list(Path("/dev/shm").glob("remuda-peers-*"))
