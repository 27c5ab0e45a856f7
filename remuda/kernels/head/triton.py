"""Greedy tokens in Triton: the key of each row's largest logit over this rank's part of the vocabulary, of logits or
straight from the weights, and what a key stands for. Keys are those of `head/torch.py`, but NaN counts as infinity.

S rows, V this rank's ids, H hidden. In kernels: V ids of a tile, R rows of a product. The lowest of equal ids wins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from remuda.kernels.device import counters, early, power_of_two
from remuda.kernels.head import torch as by_torch
from remuda.kernels.linear.cuda import Linear
from remuda.kernels.linear.triton import dot_tile, gemv_tile, prefetch_tile

_BLOCK = 4096
_MAX_COUNTERS = 1 << 14
_FEW_ROWS = 8  # one program finishes them, row after row
_PADDED_ROWS = 16
_KEPT = 128  # rows of a program that looks at keys

if TYPE_CHECKING:
    from remuda.kernels import table


@triton.jit
def _largest(value, ids, axis: tl.constexpr):
    """(largest, lowest id that has it)."""
    best = tl.max(value, axis)
    return best, tl.min(tl.where(value == tl.expand_dims(best, axis), ids, 0x7FFFFFFF), axis)


@triton.jit
def _finish_row(values, ids, keys, row, tiles, first_id, TILES: tl.constexpr):
    """The key of the largest of a row's tiles, read past the first-level cache."""
    n = tl.arange(0, TILES)
    value_N = tl.load(values + row * tiles + n, mask=n < tiles, other=float("-inf"), cache_modifier=".cg")
    id_N = tl.load(ids + row * tiles + n, mask=n < tiles, other=0x7FFFFFFF, cache_modifier=".cg")
    best, where = _largest(value_N, id_N, 0)
    bits = best.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
    tl.store(keys + row, (ordered << 32) | (0xFFFFFFFF - (where.to(tl.int64) + first_id)))


@triton.jit
def _argmax_keys(
    logits, values, ids, counter, keys, vocab, stride, first_id,
    V: tl.constexpr, TILES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row, tile = tl.program_id(0), tl.program_id(1)
    tiles = tl.num_programs(1)
    v = tile * V + tl.arange(0, V)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    value_V = tl.load(logits + row.to(tl.int64) * stride + v, mask=v < vocab, other=float("-inf")).to(tl.float32)
    value_V = tl.where(value_V != value_V, float("inf"), value_V)
    best, where = _largest(value_V, tl.where(v < vocab, v, 0x7FFFFFFF), 0)
    tl.store(values + row * tiles + tile, best)
    tl.store(ids + row * tiles + tile, where)
    tl.debug_barrier()
    if tl.atomic_add(counter + row, 1, sem="acq_rel") == tiles - 1:
        tl.store(counter + row, 0)
        _finish_row(values, ids, keys, row, tiles, first_id, TILES)


def argmax_keys(logits_SV: torch.Tensor, first_id: int, pdl: bool = False) -> torch.Tensor:
    """The key of each row's largest logit, int64 [S]; ids count from ``first_id``."""
    rows, vocab = logits_SV.shape
    assert logits_SV.stride(1) == 1 and 0 < rows <= _MAX_COUNTERS
    tiles = triton.cdiv(vocab, _BLOCK)
    device = logits_SV.device
    values = torch.empty(rows * tiles, dtype=torch.float32, device=device)
    ids = torch.empty(rows * tiles, dtype=torch.int32, device=device)
    key_S = torch.empty(rows, dtype=torch.int64, device=device)
    _argmax_keys[(rows, tiles)](
        logits_SV, values, ids, counters("argmax", device, _MAX_COUNTERS), key_S,
        vocab, logits_SV.stride(0), first_id, V=_BLOCK, TILES=power_of_two(tiles), PDL=pdl, num_warps=4, **early(pdl),
    )  # fmt: skip
    return key_S


@triton.jit(do_not_specialize=["rows"])
def _weight_keys(
    x, weight, values, ids, counter, keys, rows, vocab, hidden, stride_x, first_id,
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
    logit_VR = tl.where(logit_VR != logit_VR, float("inf"), logit_VR)
    logit_VR = tl.where((v < vocab)[:, None], logit_VR, float("-inf"))
    best_R, where_R = _largest(logit_VR, tl.broadcast_to(v[:, None], (V, R)), 0)
    tl.store(values + r * tiles + tile, best_R, mask=r < rows)
    tl.store(ids + r * tiles + tile, where_R, mask=r < rows)
    tl.debug_barrier()
    if tl.atomic_add(counter, 1, sem="acq_rel") == tiles - 1:
        tl.store(counter, 0)
        for row in tl.range(0, rows):
            _finish_row(values, ids, keys, row, tiles, first_id, TILES)


def weight_keys(x_SH: torch.Tensor, weight_VH: torch.Tensor, first_id: int, pdl: bool = False) -> torch.Tensor:
    """The keys of x W^T, at most 8 rows; no logits are written.

    ``weight_VH`` holds only ids of the vocabulary: the caller leaves a shard's padding off.
    """
    (rows, hidden), vocab = x_SH.shape, weight_VH.shape[0]
    assert 0 < rows <= _FEW_ROWS and x_SH.stride(1) == 1 and weight_VH.is_contiguous()
    tile, device = gemv_tile(weight_VH.dtype), x_SH.device
    tiles = triton.cdiv(vocab, tile.outputs)
    values = torch.empty(rows * tiles, dtype=torch.float32, device=device)
    ids = torch.empty(rows * tiles, dtype=torch.int32, device=device)
    key_S = torch.empty(rows, dtype=torch.int64, device=device)
    _weight_keys[(tiles,)](
        x_SH, weight_VH, values, ids, counters("head", device, 1), key_S,
        rows, vocab, hidden, x_SH.stride(0), first_id,
        R=_PADDED_ROWS, V=tile.outputs, K=tile.inputs, TILES=power_of_two(tiles), EVEN=hidden % tile.inputs == 0,
        BYTES=weight_VH.dtype.itemsize, PDL=pdl, num_warps=tile.warps, num_stages=tile.stages, **early(pdl),
    )  # fmt: skip
    return key_S


def head_keys(head: table.Linear, x_SH: torch.Tensor, real: int, first_id: int, pdl: bool = False) -> torch.Tensor:
    """The keys of the head's first `real` outputs; of a few rows without writing logits."""
    if not real or not isinstance(head, Linear):
        return by_torch.head_keys(head, x_SH, real, first_id)
    if len(x_SH) <= _FEW_ROWS and head.weight_NK.is_contiguous():
        return weight_keys(x_SH, head.weight_NK[:real], first_id, pdl)
    return argmax_keys(head.to_float32(x_SH)[:, :real], first_id, pdl)


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["slots", "positions"])
def _keep_tokens(keys, tokens, slots, positions, out, rows, stride, S: tl.constexpr, PDL: tl.constexpr):
    s = tl.program_id(0) * S + tl.arange(0, S)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    inside_S = s < rows
    key_S = tl.load(keys + s, mask=inside_S, other=0)
    ordered_S = (key_S >> 32).to(tl.int32)
    bits_S = tl.where(ordered_S < 0, ordered_S ^ 0x7FFFFFFF, ordered_S)
    finite_S = (bits_S & 0x7F800000) != 0x7F800000
    token_S = tl.where(finite_S, 0xFFFFFFFF - (key_S & 0xFFFFFFFF), -1)
    tl.store(out + s, token_S, mask=inside_S)
    place_S = tl.load(slots + s, mask=inside_S, other=0) * stride + tl.load(positions + s, mask=inside_S, other=0) + 1
    tl.store(tokens + place_S, tl.maximum(token_S, 0), mask=inside_S)


def keep_tokens(
    key_S: torch.Tensor, tokens_NL: torch.Tensor, slots_S: torch.Tensor, positions_S: torch.Tensor, pdl: bool = False
) -> torch.Tensor:
    """See `head/torch.py`."""
    rows = len(key_S)
    out_S = torch.empty(rows, dtype=torch.int64, device=key_S.device)
    assert tokens_NL.stride(1) == key_S.stride(0) == slots_S.stride(0) == positions_S.stride(0) == 1
    if rows:
        _keep_tokens[(triton.cdiv(rows, _KEPT),)](
            key_S, tokens_NL, slots_S, positions_S, out_S, rows, tokens_NL.stride(0), S=_KEPT, PDL=pdl, num_warps=4,
            **early(pdl),
        )  # fmt: skip
    return out_S
