"""Which kernel in which form serves which number of rows: static, so that a graph captured twice is the same graph.

Chosen by `benchmarks/gpu/bench_moe.py`.
"""

from __future__ import annotations

from remuda.kernels.moe.triton.grouped import Tile
from remuda.kernels.moe.triton.small import Stream

SMALL_ROWS = 8  # up to so many rows (a token's choice each) every row reads its own expert


def small_streams(itemsize: int) -> tuple[Stream, Stream]:
    """For gate_up and down: 16 bytes per lane and row at a time, so that activations lie as the weights do."""
    rows = 8 if itemsize == 1 else 4
    return Stream(rows, 1024, num_warps=4, num_stages=3), Stream(rows, 512, num_warps=2, num_stages=3)


def tiles(rows_per_expert: float, itemsize: int) -> tuple[Tile, Tile]:
    """For gate_up and down. Few rows: weights stream through a deep pipeline; many: large tiles fill tensor cores."""
    if itemsize == 4:  # float32: shared memory holds no more
        return Tile(16, 32, 32, num_stages=3), Tile(16, 32, 32, num_stages=3)
    wide = 128 // itemsize  # inputs in 128 bytes
    if rows_per_expert <= 48:
        block_m = 16 if rows_per_expert <= 12 else 32
        return Tile(block_m, 64, 2 * wide, num_stages=4), Tile(block_m, 64, 2 * wide, num_stages=4)
    if rows_per_expert <= 96:
        return Tile(64, 256, wide, num_warps=8, num_stages=3), Tile(64, 256, wide, num_warps=8, num_stages=3)
    return Tile(128, 256, wide, num_warps=8, num_stages=3), Tile(128, 256, wide, num_warps=8, num_stages=3)
