"""Rows in order of their experts, and the tiles of rows that a grouped product is cut into, in one kernel.

The grid of the products is that of the worst case, so a graph can hold it; tiles that are not needed end at once. Rows
of nobody (expert -1: another rank's, or padding) come last, as the rows of expert E.

R rows (a token's choice each), E experts of this rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from remuda.kernels.device import early

TILE_FIELDS = 3  # expert (-1: unused), first place, end


@dataclass(frozen=True)
class SortedRows:
    row_R: torch.Tensor  # int32: the row at each place
    end_E: torch.Tensor  # int32: where each expert's places end
    tiles_N3: torch.Tensor  # int32

    @property
    def num_tiles(self) -> int:
        return self.tiles_N3.shape[0]


def sort_rows(expert_Tk: torch.Tensor, experts: int, block_m: int, pdl: bool = False) -> SortedRows:
    """A stable counting sort: one program per expert counts all rows and places its own."""
    rows, device = expert_Tk.numel(), expert_Tk.device
    touched = min(rows, experts + 1)
    num_tiles = touched + (rows - touched) // block_m
    row_R = torch.empty(rows, dtype=torch.int32, device=device)
    end_E = torch.empty(experts, dtype=torch.int32, device=device)
    tiles_N3 = torch.empty((num_tiles, TILE_FIELDS), dtype=torch.int32, device=device)
    _sort_kernel[(experts + 1,)](
        expert_Tk, row_R, end_E, tiles_N3, rows, experts, num_tiles,
        BLOCK_M=block_m, BLOCK_R=256 if rows <= 256 else 1024,
        BINS=max(32, triton.next_power_of_2(experts + 1)), PDL=pdl, num_warps=4, **early(pdl),
    )  # fmt: skip
    return SortedRows(row_R, end_E, tiles_N3)


@triton.jit(do_not_specialize=["rows", "experts", "num_tiles"])
def _sort_kernel(
    expert, row_out, end_out, tiles, rows, experts, num_tiles,
    BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BINS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    mine = tl.program_id(0)
    offset = tl.arange(0, BLOCK_R)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    count = tl.zeros((BINS,), tl.int32)
    for start in tl.range(0, rows, BLOCK_R):
        inside = start + offset < rows
        e = tl.load(expert + start + offset, mask=inside, other=0).to(tl.int32)
        count += tl.histogram(tl.where(e < 0, experts, e), BINS, mask=inside)
    bins = tl.arange(0, BINS)
    tile_count = (count + BLOCK_M - 1) // BLOCK_M
    first = tl.sum(tl.where(bins < mine, count, 0), 0)
    end = first + tl.sum(tl.where(bins == mine, count, 0), 0)
    first_tile = tl.sum(tl.where(bins < mine, tile_count, 0), 0)
    end_tile = first_tile + tl.sum(tl.where(bins == mine, tile_count, 0), 0)

    place = first
    for start in tl.range(0, rows, BLOCK_R):
        inside = start + offset < rows
        e = tl.load(expert + start + offset, mask=inside, other=0).to(tl.int32)
        own = ((tl.where(e < 0, experts, e) == mine) & inside).to(tl.int32)
        tl.store(row_out + place + tl.cumsum(own, 0) - 1, start + offset, mask=own != 0)
        place += tl.sum(own, 0)

    if mine < experts:
        tl.store(end_out + mine, end)
    last = num_tiles if mine == experts else end_tile  # the last program also marks the tiles that nobody needs
    for tile in tl.range(first_tile, last):
        start = first + (tile - first_tile) * BLOCK_M
        tl.store(tiles + tile * 3, mine if tile < end_tile else -1)
        tl.store(tiles + tile * 3 + 1, start)
        tl.store(tiles + tile * 3 + 2, tl.minimum(start + BLOCK_M, end))
