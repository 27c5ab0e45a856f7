"""Attention over paged keys and values in Triton: split keys for decode rows, tiles of packed queries for other rows.

T tokens, S rows, Q query heads, K key/value heads, G = Q / K, D head_dim, P pages, B page size (a power of two).
In kernels: M queries and N keys of a tile; the G query heads of a key head share tiles, so that every key is read once.
The lengths of rows are known to the device alone; grids depend on the shapes of tensors only, so graphs can hold them.
Rows with context 0 give zeros; tokens past the last row are left as they are.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from remuda.kernels.attention.tiles import decode_tile, prompt_tile
from remuda.kernels.batch import BatchView
from remuda.kernels.device import counters, early, has_large_blocks, multiprocessors, power_of_two
from remuda.kernels.table import TILED_HEAD_DIMS

_UNLIMITED = 1 << 30  # of chunk and window: past any position
_MOST_SPLITS = 32
_LEAST_KEYS = 256  # of a part, and the double of it is not split
_MAX_COUNTERS = 1 << 16


@triton.jit
def _visible_from(position, chunk, window):
    """The first key that a query at `position` sees."""
    return tl.maximum(position // chunk * chunk, position - window + 1)


@triton.jit
def _attend(
    state, q_MD, k, v, table, key_N, keep_MN, load_N, scale, head, stride_page,
    D: tl.constexpr, PAGE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One tile of keys into the running (weighted values, peak, sum) of a softmax in base 2."""
    acc_MD, peak_M, sum_M = state
    d = tl.arange(0, D)
    if MASKED:
        page_N = tl.load(table + key_N // PAGE, mask=load_N, other=0).to(tl.int64)
    else:
        page_N = tl.load(table + key_N // PAGE).to(tl.int64)
    place_N = page_N * stride_page + head * (PAGE * D) + key_N % PAGE * D
    if MASKED:
        k_DN = tl.load(k + place_N[None, :] + d[:, None], mask=load_N[None, :], other=0.0)
        v_ND = tl.load(v + place_N[:, None] + d[None, :], mask=load_N[:, None], other=0.0)
    else:
        k_DN = tl.load(k + place_N[None, :] + d[:, None])
        v_ND = tl.load(v + place_N[:, None] + d[None, :])
    score_MN = tl.dot(q_MD, k_DN.to(q_MD.dtype), input_precision="ieee") * scale
    if MASKED:
        score_MN = tl.where(keep_MN, score_MN, float("-inf"))
    new_peak_M = tl.maximum(peak_M, tl.max(score_MN, 1))
    base_M = tl.where(new_peak_M == float("-inf"), 0.0, new_peak_M)  # a query that has seen no key yet
    decay_M = tl.exp2(peak_M - base_M)
    weight_MN = tl.exp2(score_MN - base_M[:, None])
    sum_M = sum_M * decay_M + tl.sum(weight_MN, 1)
    acc_MD = acc_MD * decay_M[:, None]
    acc_MD = tl.dot(weight_MN.to(q_MD.dtype), v_ND.to(q_MD.dtype), acc_MD, input_precision="ieee")
    return acc_MD, new_peak_M, sum_M


# What changes from step to step is not specialized on: each variant would be compiled while somebody waits.
@triton.jit(do_not_specialize=["stride_table"], do_not_specialize_on_alignment=["tables"])
def _decode(
    q, k, v, out, tables, context, partial, peaks, sums, counter, scale, v_scale, chunk, window,
    stride_q, stride_out, stride_table, stride_page,
    G: tl.constexpr, M: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, N: tl.constexpr,
    SPLIT: tl.constexpr, LEAST: tl.constexpr, ROUND: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One part of a row's keys for one key head; the last part to arrive adds the parts up."""
    row, head, split, splits = tl.program_id(0), tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    length = tl.load(context + row)
    first = _visible_from(tl.maximum(length - 1, 0), chunk, window)
    first_tile = first // N
    tiles = tl.cdiv(length, N) - first_tile
    share = tl.maximum(tl.cdiv(tiles, splits), LEAST)
    if tiles <= 2 * LEAST:  # to add up parts would take longer
        share = 2 * LEAST
    active = tl.maximum(tl.cdiv(tiles, share), 1)
    if split >= active:
        return
    m, d = tl.arange(0, M), tl.arange(0, D)
    inside_M1 = (m < G)[:, None]
    place_MD = (head * G + m)[:, None] * D + d[None, :]
    q_MD = tl.load(q + row.to(tl.int64) * stride_q + place_MD, mask=inside_M1, other=0.0)
    state = tl.zeros([M, D], tl.float32), tl.full([M], float("-inf"), tl.float32), tl.zeros([M], tl.float32)
    begin = (first_tile + split * share) * N
    end = tl.minimum(begin + share * N, length)
    table = tables + row.to(tl.int64) * stride_table
    for start in tl.range(begin, end, N):
        key_N = start + tl.arange(0, N)
        seen_N = (key_N >= first) & (key_N < length)
        state = _attend(
            state, q_MD, k, v, table, key_N, seen_N[None, :], seen_N, scale, head, stride_page, D, PAGE, True
        )
    acc_MD, peak_M, sum_M = state
    out_row = out + row.to(tl.int64) * stride_out
    if active == 1:
        out_MD = acc_MD * (v_scale / tl.where(sum_M > 0.0, sum_M, 1.0))[:, None]
        tl.store(out_row + place_MD, out_MD.to(out.dtype.element_ty), mask=inside_M1)
    elif SPLIT:
        pair = row * tl.num_programs(1) + head
        part_M = (pair * splits + split) * G + m
        tl.store(partial + part_M.to(tl.int64)[:, None] * D + d[None, :], acc_MD, mask=inside_M1)
        tl.store(peaks + part_M, peak_M, mask=m < G)
        tl.store(sums + part_M, sum_M, mask=m < G)
        tl.debug_barrier()  # all threads' parts are written before one thread says so
        if tl.atomic_add(counter + pair, 1, sem="acq_rel") == active - 1:
            _combine(partial, peaks, sums, out_row, pair * splits, head, active, v_scale, G, M, D, ROUND)
            tl.store(counter + pair, 0)


@triton.jit
def _combine(
    partial, peaks, sums, out_row, first_part, head, active, v_scale,
    G: tl.constexpr, M: tl.constexpr, D: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """A few parts at a time, past the first-level cache, which does not see what other multiprocessors wrote."""
    r, m, d = tl.arange(0, ROUND), tl.arange(0, M), tl.arange(0, D)
    acc_MD, peak_M, sum_M = (
        tl.zeros([M, D], tl.float32),
        tl.full([M], float("-inf"), tl.float32),
        tl.zeros([M], tl.float32),
    )
    for start in tl.range(0, active, ROUND):
        part_RM = (first_part + start + r)[:, None] * G + m[None, :]
        live_RM = (start + r < active)[:, None] & (m < G)[None, :]
        peak_RM = tl.load(peaks + part_RM, mask=live_RM, other=float("-inf"), cache_modifier=".cg")
        sum_RM = tl.load(sums + part_RM, mask=live_RM, other=0.0, cache_modifier=".cg")
        place_RMD = part_RM.to(tl.int64)[:, :, None] * D + d[None, None, :]
        acc_RMD = tl.load(partial + place_RMD, mask=live_RM[:, :, None], other=0.0, cache_modifier=".cg")
        new_peak_M = tl.maximum(peak_M, tl.max(peak_RM, 0))
        base_M = tl.where(new_peak_M == float("-inf"), 0.0, new_peak_M)
        decay_M, weight_RM = tl.exp2(peak_M - base_M), tl.exp2(peak_RM - base_M[None, :])
        sum_M = sum_M * decay_M + tl.sum(sum_RM * weight_RM, 0)
        acc_MD = acc_MD * decay_M[:, None] + tl.sum(acc_RMD * weight_RM[:, :, None], 0)
        peak_M = new_peak_M
    out_MD = acc_MD * (v_scale / tl.where(sum_M > 0.0, sum_M, 1.0))[:, None]
    place_MD = (head * G + m)[:, None] * D + d[None, :]
    tl.store(out_row + place_MD, out_MD.to(out_row.dtype.element_ty), mask=(m < G)[:, None])


@triton.jit(do_not_specialize=["first_row", "stride_table"], do_not_specialize_on_alignment=["tables"])
def _prompt(
    q, k, v, out, tables, query_start, context, scale, v_scale, chunk, window, first_row,
    stride_q, stride_out, stride_table, stride_page,
    G: tl.constexpr, M: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, N: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """M queries of one row and key head, the G heads of a token side by side. Long tiles start first."""
    tile, head, row = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1), first_row + tl.program_id(2)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token = tl.load(query_start + row)
    count = tl.load(query_start + row + 1) - token
    if tile * M >= count * G:
        return
    before = tl.load(context + row) - count
    m, d = tile * M + tl.arange(0, M), tl.arange(0, D)
    position_M = before + m // G
    low_M = _visible_from(position_M, chunk, window)
    token_M, head_M = (token + m // G).to(tl.int64), head * G + m % G
    inside_M1 = (m < count * G)[:, None]
    q_MD = tl.load(q + (token_M * stride_q + head_M * D)[:, None] + d[None, :], mask=inside_M1, other=0.0)
    oldest = before + tile * M // G
    newest = before + tl.minimum((tile * M + M - 1) // G, count - 1)
    # Keys [begin, common) and [last, newest] are seen by some queries of the tile, those between by all.
    begin = _visible_from(oldest, chunk, window) // N * N
    common = tl.maximum(tl.cdiv(_visible_from(newest, chunk, window), N) * N, begin)
    last = tl.maximum((oldest + 1) // N * N, common)
    leading = (tl.minimum(common, newest + 1) - begin + N - 1) // N
    trailing = tl.maximum(newest + 1 - last + N - 1, 0) // N
    state = tl.zeros([M, D], tl.float32), tl.full([M], float("-inf"), tl.float32), tl.zeros([M], tl.float32)
    table = tables + row.to(tl.int64) * stride_table
    lowest = _visible_from(oldest, chunk, window)
    for i in tl.range(0, leading + trailing):
        key_N = tl.where(i < leading, begin + i * N, last + (i - leading) * N) + tl.arange(0, N)
        keep_MN = (key_N[None, :] >= low_M[:, None]) & (key_N[None, :] <= position_M[:, None])
        load_N = (key_N >= lowest) & (key_N <= newest)
        state = _attend(state, q_MD, k, v, table, key_N, keep_MN, load_N, scale, head, stride_page, D, PAGE, True)
    for start in tl.range(common, last, N):
        key_N = start + tl.arange(0, N)
        state = _attend(state, q_MD, k, v, table, key_N, None, None, scale, head, stride_page, D, PAGE, False)
    acc_MD, _, sum_M = state
    out_MD = acc_MD * (v_scale / tl.where(sum_M > 0.0, sum_M, 1.0))[:, None]
    place_M = token_M * stride_out + head_M * D
    tl.store(out + place_M[:, None] + d[None, :], out_MD.to(out.dtype.element_ty), mask=inside_M1)


def serves(head_dim: int) -> bool:
    """Whether the tiles fit; other sizes are for torch."""
    return head_dim in TILED_HEAD_DIMS


def paged_attention(
    q_TQD: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    batch: BatchView,
    group: int,
    chunk: int | None,
    scale: float,
    window: int | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    pdl: bool = False,
) -> torch.Tensor:
    """Causal attention of every row over its pages k, v [P, K, B, D] -> [T, Q, D].

    With ``chunk`` a query at position p sees only keys of positions p // chunk * chunk ... p, with ``window`` only
    those past p - window. Pages of float8_e4m3fn hold numbers that ``k_scale`` and ``v_scale`` multiply.
    """
    Q, D = q_TQD.shape[1:]
    assert serves(D) and Q % k.shape[1] == 0 and k.is_contiguous() and v.is_contiguous()
    if q_TQD.stride(2) != 1 or q_TQD.stride(1) != D:
        q_TQD = q_TQD.contiguous()
    out_TQD = torch.empty(q_TQD.shape, dtype=q_TQD.dtype, device=q_TQD.device)
    limits = (chunk or _UNLIMITED, window or _UNLIMITED)
    scales = (scale * k_scale * math.log2(math.e), v_scale)
    if batch.num_decodes:
        _run_decode(q_TQD, k, v, out_TQD, batch, group, scales, limits, pdl)
    if batch.context_S.shape[0] > batch.num_decodes:
        _run_prompt(q_TQD, k, v, out_TQD, batch, group, scales, limits, pdl)
    return out_TQD


def _run_decode(
    q_TQD: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out_TQD: torch.Tensor, batch: BatchView, group: int,
    scales: tuple[float, float], limits: tuple[int, int], pdl: bool,
) -> None:  # fmt: skip
    (_, Q, D), (K, page) = q_TQD.shape, k.shape[1:3]
    rows, heads, table_SB = batch.num_decodes, Q // K, batch.tables_GSB[group]
    tile = decode_tile(D, q_TQD.dtype, rows * K, has_large_blocks(q_TQD.device))
    longest = min(table_SB.shape[1] * page, *limits)
    splits = min(decode_splits(rows * K, longest, tile.keys, multiprocessors(q_TQD.device)), _MOST_SPLITS)
    parts = rows * K * splits * heads if splits > 1 else 0
    partial = torch.empty(parts, D + 2, dtype=torch.float32, device=q_TQD.device).view(-1)
    assert rows * K <= _MAX_COUNTERS
    _decode[(rows, K, splits)](
        q_TQD, k, v, out_TQD, table_SB, batch.context_S, partial[2 * parts :], partial, partial[parts:],
        counters("attention", q_TQD.device, _MAX_COUNTERS), *scales, *limits,
        q_TQD.stride(0), out_TQD.stride(0), table_SB.stride(0), k.stride(0),
        G=heads, M=max(16, power_of_two(heads)), D=D, PAGE=page, N=tile.keys,
        SPLIT=splits > 1, LEAST=max(1, _LEAST_KEYS // tile.keys), ROUND=max(1, 512 // D), PDL=pdl,
        num_warps=tile.warps, num_stages=tile.stages, **early(pdl),
    )  # fmt: skip


def _run_prompt(
    q_TQD: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out_TQD: torch.Tensor, batch: BatchView, group: int,
    scales: tuple[float, float], limits: tuple[int, int], pdl: bool,
) -> None:  # fmt: skip
    (_, Q, D), (K, page) = q_TQD.shape, k.shape[1:3]
    rows, heads, table_SB = batch.context_S.shape[0] - batch.num_decodes, Q // K, batch.tables_GSB[group]
    tile = prompt_tile(D, q_TQD.dtype, batch.max_query * heads, has_large_blocks(q_TQD.device))
    _prompt[(triton.cdiv(batch.max_query * heads, tile.queries), K, rows)](
        q_TQD, k, v, out_TQD, table_SB, batch.query_start_S1, batch.context_S, *scales, *limits, batch.num_decodes,
        q_TQD.stride(0), out_TQD.stride(0), table_SB.stride(0), k.stride(0),
        G=heads, M=tile.queries, D=D, PAGE=page, N=tile.keys, PDL=pdl,
        num_warps=tile.warps, num_stages=tile.stages, **early(pdl),
    )  # fmt: skip


def decode_splits(pairs: int, longest: int, keys: int, processors: int) -> int:
    """Parts of a row's keys: as many as give every multiprocessor a block, none without a tile in the longest row."""
    wanted = power_of_two(processors // pairs + 1) // 2
    return min(max(1, wanted), power_of_two(-(-longest // keys)))
