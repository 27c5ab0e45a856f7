"""(max, id) of each row over this rank's part of the vocabulary, in Triton: of logits, or straight from the weights.

S rows, V this rank's ids, H hidden. In kernels: V ids of a tile, R rows of a product. The lowest of equal ids wins.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from remuda.kernels.device import counters, early, power_of_two
from remuda.kernels.linear.triton import MAX_ROWS, dot_tile, gemv_tile, prefetch_tile

_BLOCK = 4096
_MAX_COUNTERS = 1 << 14
_PADDED_ROWS = 16


@triton.jit
def _largest(value, ids, axis: tl.constexpr):
    """(largest, lowest id that has it)."""
    best = tl.max(value, axis)
    return best, tl.min(tl.where(value == tl.expand_dims(best, axis), ids, 0x7FFFFFFF), axis)


@triton.jit
def _finish_row(values, ids, out_value, out_id, row, tiles, first_id, TILES: tl.constexpr):
    """The largest of a row's tiles, read past the first-level cache."""
    n = tl.arange(0, TILES)
    value_N = tl.load(values + row * tiles + n, mask=n < tiles, other=float("-inf"), cache_modifier=".cg")
    id_N = tl.load(ids + row * tiles + n, mask=n < tiles, other=0x7FFFFFFF, cache_modifier=".cg")
    best, where = _largest(value_N, id_N, 0)
    tl.store(out_value + row, best)
    tl.store(out_id + row, where.to(tl.int64) + first_id)


@triton.jit
def _argmax(
    logits, values, ids, counter, out_value, out_id, vocab, stride, first_id,
    V: tl.constexpr, TILES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row, tile = tl.program_id(0), tl.program_id(1)
    tiles = tl.num_programs(1)
    v = tile * V + tl.arange(0, V)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    value_V = tl.load(logits + row.to(tl.int64) * stride + v, mask=v < vocab, other=float("-inf")).to(tl.float32)
    best, where = _largest(value_V, tl.where(v < vocab, v, 0x7FFFFFFF), 0)
    tl.store(values + row * tiles + tile, best)
    tl.store(ids + row * tiles + tile, where)
    tl.debug_barrier()
    if tl.atomic_add(counter + row, 1, sem="acq_rel") == tiles - 1:
        tl.store(counter + row, 0)
        _finish_row(values, ids, out_value, out_id, row, tiles, first_id, TILES)


def argmax(logits_SV: torch.Tensor, first_id: int = 0, pdl: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """(largest logit float32 [S], its id + ``first_id`` int64 [S]). Logits are not NaN."""
    rows, vocab = logits_SV.shape
    assert logits_SV.stride(1) == 1 and 0 < rows <= _MAX_COUNTERS
    tiles = triton.cdiv(vocab, _BLOCK)
    device = logits_SV.device
    values = torch.empty(rows * tiles, dtype=torch.float32, device=device)
    ids = torch.empty(rows * tiles, dtype=torch.int32, device=device)
    value_S = torch.empty(rows, dtype=torch.float32, device=device)
    id_S = torch.empty(rows, dtype=torch.int64, device=device)
    _argmax[(rows, tiles)](
        logits_SV, values, ids, counters("argmax", device, _MAX_COUNTERS), value_S, id_S,
        vocab, logits_SV.stride(0), first_id, V=_BLOCK, TILES=power_of_two(tiles), PDL=pdl, num_warps=4, **early(pdl),
    )  # fmt: skip
    return value_S, id_S


@triton.jit
def _head_argmax(
    x, weight, values, ids, counter, out_value, out_id, rows, vocab, hidden, stride_x, first_id,
    R: tl.constexpr, V: tl.constexpr, K: tl.constexpr, TILES: tl.constexpr, EVEN: tl.constexpr, BYTES: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Logits of V ids for all rows, of which only the largest leaves the multiprocessor."""
    tile, tiles = tl.program_id(0), tl.num_programs(0)
    v, r = tile * V + tl.arange(0, V), tl.arange(0, R)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        prefetch_tile(weight, v, 0, vocab, hidden, 4, BYTES)
        tl.extra.cuda.gdc_wait()
    logit_VR = dot_tile(x, weight, v, 0, hidden, rows, vocab, hidden, stride_x, R, V, K, 1, EVEN)
    logit_VR = tl.where((v < vocab)[:, None], logit_VR, float("-inf"))
    best_R, where_R = _largest(logit_VR, tl.broadcast_to(v[:, None], (V, R)), 0)
    tl.store(values + r * tiles + tile, best_R, mask=r < rows)
    tl.store(ids + r * tiles + tile, where_R, mask=r < rows)
    tl.debug_barrier()
    if tl.atomic_add(counter, 1, sem="acq_rel") == tiles - 1:
        tl.store(counter, 0)
        for row in tl.range(0, rows):
            _finish_row(values, ids, out_value, out_id, row, tiles, first_id, TILES)


def head_argmax(
    x_SH: torch.Tensor, weight_VH: torch.Tensor, first_id: int = 0, pdl: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """(largest logit float32 [S], its id + ``first_id`` int64 [S]) of x W^T, at most 8 rows; no logits are written.

    ``weight_VH`` holds only ids of the vocabulary: the caller leaves a shard's padding off.
    """
    (rows, hidden), vocab = x_SH.shape, weight_VH.shape[0]
    assert 0 < rows <= MAX_ROWS and x_SH.stride(1) == 1 and weight_VH.is_contiguous()
    tile, device = gemv_tile(weight_VH.dtype), x_SH.device
    tiles = triton.cdiv(vocab, tile.outputs)
    values = torch.empty(rows * tiles, dtype=torch.float32, device=device)
    ids = torch.empty(rows * tiles, dtype=torch.int32, device=device)
    value_S = torch.empty(rows, dtype=torch.float32, device=device)
    id_S = torch.empty(rows, dtype=torch.int64, device=device)
    _head_argmax[(tiles,)](
        x_SH, weight_VH, values, ids, counters("head", device, 1), value_S, id_S,
        rows, vocab, hidden, x_SH.stride(0), first_id,
        R=_PADDED_ROWS, V=tile.outputs, K=tile.inputs, TILES=power_of_two(tiles), EVEN=hidden % tile.inputs == 0,
        BYTES=weight_VH.dtype.itemsize, PDL=pdl, num_warps=tile.warps, num_stages=tile.stages, **early(pdl),
    )  # fmt: skip
    return value_S, id_S
