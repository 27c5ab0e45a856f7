"""Shared-memory collectives among forked ranks, more of them than cores."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from remuda.kernels.native import build, runtime
from remuda.parallel.shm import SharedMemory, make_segment
from remuda.protocol.errors import PeerLost

# Where the native library cannot be built there is nothing to test.
if build.unavailable_reason() is not None:
    __test__ = False

FORK = multiprocessing.get_context("fork")


@cache
def library() -> ctypes.CDLL:
    return runtime.load(build.build(), threads=1)


def run_ranks(size: int, body: Callable[[SharedMemory], None], timeout_s: float = 20.0) -> list[int | None]:
    """Exit codes of `size` forked ranks that ran `body`."""
    segment = make_segment(library(), size)

    def run(rank: int) -> None:
        torch.set_num_threads(1)  # a fork has none of the threads that earlier tests made torch start
        body(SharedMemory(library(), segment, rank, size, timeout_s=timeout_s, spin=size <= 2))

    ranks = [FORK.Process(target=run, args=(rank,)) for rank in range(size)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    os.close(segment)
    return [rank.exitcode for rank in ranks]


def value_of(rank: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(rank)).to(dtype)


@pytest.mark.parametrize("size", [2, 3, 8, 16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_all_reduce(size: int, dtype: torch.dtype) -> None:
    shapes = [(1,), (16, 256), (7, 33), (100, 1000), (700, 1025), (1,)]

    def body(group: SharedMemory) -> None:
        for _ in range(3):
            for shape in shapes:
                x = value_of(group.rank, shape, dtype)
                expected = sum(value_of(r, shape, dtype).float() for r in range(group.size)).to(dtype)
                assert torch.equal(group.all_reduce_(x), expected)

    assert run_ranks(size, body) == [0] * size


@pytest.mark.parametrize("size", [2, 5])
def test_gathers_broadcasts_and_barriers(size: int) -> None:
    shape = (9, 70000)  # longer than a slot

    def body(group: SharedMemory) -> None:
        mine = torch.arange(9 * 70000).view(shape) + group.rank
        everyone = torch.stack([torch.arange(9 * 70000).view(shape) + r for r in range(group.size)])
        assert torch.equal(group.all_gather(mine), everyone)
        gathered = group.gather(mine)
        assert gathered is None if group.rank else torch.equal(gathered, everyone)
        for source in range(group.size):
            group.barrier()
            assert torch.equal(group.broadcast_(mine.clone(), source), everyone[source])
        strided = mine.float().T[:3]
        expected = sum(everyone[r].float().T[:3] for r in range(group.size))
        assert group.all_reduce_(strided) is strided
        assert torch.equal(strided, expected)

    assert run_ranks(size, body) == [0] * size


def test_many_small_meetings_of_more_ranks_than_cores() -> None:
    def body(group: SharedMemory) -> None:
        x = torch.ones(64)
        for i in range(300):
            assert group.all_reduce_(x.fill_(i))[0] == i * group.size

    assert run_ranks(16, body) == [0] * 16


def test_a_dead_peer_is_an_error_after_the_timeout() -> None:
    def body(group: SharedMemory) -> None:
        if group.rank == 1:
            os._exit(7)
        with pytest.raises(PeerLost, match="waited"):
            group.all_reduce_(torch.ones(4))

    assert run_ranks(3, body, timeout_s=0.5) == [0, 7, 0]


def test_closing_wakes_a_waiting_peer(tmp_path: Path) -> None:
    def body(group: SharedMemory) -> None:
        if group.rank == 1:
            group.barrier()
            group.close()
            return
        group.barrier()
        with pytest.raises(PeerLost, match="closed"):
            group.barrier()

    assert run_ranks(2, body) == [0, 0]


def test_integers_are_not_added() -> None:
    group = SharedMemory(library(), make_segment(library(), 1), 0, 1)
    with pytest.raises(TypeError, match="bfloat16 and float32"):
        group.all_reduce_(torch.ones(3, dtype=torch.int64))
