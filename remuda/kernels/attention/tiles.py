"""Sizes of the tiles in which attention kernels work, by head_dim and dtype.

Chosen by registers and shared memory of code compiled for sm_90, and by times on an H100;
`benchmarks/gpu/kernel_sweeps.py` times others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from remuda.kernels.device import power_of_two


@dataclass(frozen=True)
class Tile:
    queries: int  # rows of a tile: tokens times the query heads of one key head
    keys: int
    warps: int
    stages: int


_FEW_PAIRS = 8


def decode_tile(head_dim: int, dtype: torch.dtype, pairs: int, large: bool) -> Tile:
    """Keys and values of 32 KB a tile, two tiles on their way: page numbers take every other stage.

    ``pairs`` of rows and key heads: of a few the parts are added up sooner if they are fewer, so tiles are twice as
    large, where blocks may be ``large``.
    """
    keys = min(128, (16384 if large and pairs <= _FEW_PAIRS else 8192) // head_dim)
    return Tile(16, keys // 2 if dtype is torch.float32 else keys, warps=4, stages=5)


def prompt_tile(head_dim: int, dtype: torch.dtype, queries: int, large: bool) -> Tile:
    """``queries`` of the longest row: short rows get small tiles. ``large``: blocks may be."""
    if dtype is torch.float32:
        return Tile(16, min(64, 4096 // head_dim), warps=4, stages=2)
    if queries <= 32:
        return Tile(max(16, power_of_two(queries)), 64, warps=4, stages=2)
    if queries <= 64 or head_dim == 256:
        return Tile(64, 64 if head_dim < 256 else 32, warps=4, stages=3)
    return Tile(128, 64, warps=8, stages=5 if large else 3)
