"""y = (x W^T) * scales + bias of a few rows in Triton: weights stream by once, and reading them is all the time.

R rows (at most 64), K inputs, N outputs. In kernels: N and K of a tile. One row is multiplied without tensor cores: its
programs are small, many are on a multiprocessor at once, and each keeps a sum per output and lane until all inputs are
through. More rows, and the largest weights, are products of tiles; where N is too small to occupy the device, K is
split and the last part to arrive adds the parts up, in order, so that results repeat.

A kernel that starts early asks the second-level cache for its weights before it waits, or holds them in registers where
they are short: what comes before it (a norm, an all-reduce, attention) then costs the memory no time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl

from remuda.kernels.device import early, multiprocessors, power_of_two

MAX_ROWS = 64
_LEAST_ROWS = 16  # of a matrix product
_MAX_SPLITS = 8
_LONE_ROW_BYTES = 96 << 20  # of a weight: above, tiles read as fast as memory gives, and one row is multiplied by them
_HELD_INPUTS = 2048
_FIRST_LINES = 4  # of each output that a product of tiles asks for in advance


@dataclass(frozen=True)
class GemvTile:
    outputs: int
    inputs: int
    warps: int
    stages: int
    rows: int = _LEAST_ROWS
    held: bool = False  # all inputs at once, before the wait


def tile_of(rows: int, weight_NK: torch.Tensor, gated: bool) -> GemvTile:
    if rows > 1 or weight_NK.nbytes > _LONE_ROW_BYTES:
        return replace(gemv_tile(weight_NK.dtype), rows=max(_LEAST_ROWS, power_of_two(rows)))
    inputs = weight_NK.shape[1]
    return row_tile(inputs, weight_NK.dtype) if gated or inputs > _HELD_INPUTS else held_tile(inputs)


def row_tile(inputs: int, weight: torch.dtype) -> GemvTile:
    """For one row: 16 bytes per lane and output at a time, and no more lanes than a row of the weight fills four times:
    small programs are all on the device at once."""
    lanes = 16 // weight.itemsize
    warps = max(1, min(4, power_of_two(inputs // (4 * 32 * lanes) + 1) // 2))
    return GemvTile(4, warps * 32 * lanes, warps, stages=3, rows=1)


def held_tile(inputs: int) -> GemvTile:
    """For one row whose weights a program holds before it waits."""
    whole = max(64, power_of_two(inputs))
    return GemvTile(4, whole, warps=max(1, whole // 512), stages=1, rows=1, held=True)


def gemv_tile(weight: torch.dtype) -> GemvTile:
    """64 outputs are the least that a warp group multiplies; four tiles of 16 KB are on their way at any time."""
    if weight.itemsize == 1:
        return GemvTile(64, 256, warps=4, stages=4)
    if weight.itemsize == 2:
        return GemvTile(64, 128, warps=4, stages=4)
    return GemvTile(16, 64, warps=4, stages=2)


@triton.jit
def dot_tile(
    x, weight, n_N, begin, end, rows, outputs, inputs, stride_x,
    R: tl.constexpr, N: tl.constexpr, K: tl.constexpr, STAGES: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Sums over inputs [begin, end) of outputs `n_N`: float32 [N, R]."""
    r, k = tl.arange(0, R), tl.arange(0, K)
    row_N = n_N.to(tl.int64)[:, None] * inputs
    if R == 1:
        return dot_row(x, weight + row_N, (n_N < outputs)[:, None], begin, end, N, K, STAGES)[:, None]
    acc_NR = tl.zeros([N, R], tl.float32)
    for start in tl.range(begin, end, K):
        k_K = start + k
        if EVEN:
            w_NK = tl.load(weight + row_N + k_K[None, :], mask=(n_N < outputs)[:, None], other=0.0)
            x_KR = tl.load(x + r[None, :] * stride_x + k_K[:, None], mask=(r < rows)[None, :], other=0.0)
        else:
            in_N1, in_1R = (n_N < outputs)[:, None], (r < rows)[None, :]
            w_NK = tl.load(weight + row_N + k_K[None, :], mask=in_N1 & (k_K < end)[None, :], other=0.0)
            x_KR = tl.load(x + r[None, :] * stride_x + k_K[:, None], mask=in_1R & (k_K < end)[:, None], other=0.0)
        acc_NR = tl.dot(w_NK.to(x_KR.dtype), x_KR, acc_NR, input_precision="ieee")
    return acc_NR


@triton.jit
def dot_row(x, weight_N1, in_N1, begin, end, N: tl.constexpr, K: tl.constexpr, STAGES: tl.constexpr):
    """Sums over inputs [begin, end) of one row of x and the outputs that begin at `weight_N1`: float32 [N]."""
    total_NK = tl.zeros([N, K], tl.float32)
    for start in tl.range(begin, end, K, num_stages=STAGES):
        k_1K = start + tl.arange(0, K)[None, :]
        w_NK = tl.load(weight_N1 + k_1K, mask=in_N1 & (k_1K < end), other=0.0)
        x_1K = tl.load(x + k_1K, mask=k_1K < end, other=0.0)
        total_NK += w_NK.to(tl.float32) * x_1K.to(tl.float32)
    return tl.sum(total_NK, 1)


@triton.jit
def prefetch_tile(weight, n_N, begin, outputs, inputs, LINES: tl.constexpr, BYTES: tl.constexpr):
    """Ask the second-level cache for the first lines (128 bytes) of each output's weights."""
    column = tl.minimum(begin + tl.arange(0, LINES) * (128 // BYTES), inputs - 1)
    at = weight + tl.minimum(n_N, outputs - 1).to(tl.int64)[:, None] * inputs + column[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [at.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _scaled(acc_NR, weight_scale, x_scale, bias, n_N, outputs, rows, R: tl.constexpr):
    r = tl.arange(0, R)
    if weight_scale is not None:
        acc_NR *= tl.load(weight_scale + n_N, mask=n_N < outputs, other=0.0)[:, None]
    if x_scale is not None:
        acc_NR *= tl.load(x_scale + r, mask=r < rows, other=0.0)[None, :]
    if bias is not None:
        acc_NR += tl.load(bias + n_N, mask=n_N < outputs, other=0.0).to(tl.float32)[:, None]
    return acc_NR


@triton.jit(do_not_specialize=["rows"])
def _gemv(
    x, weight, weight_scale, x_scale, bias, y, partial, counter, rows, outputs, inputs, stride_x,
    R: tl.constexpr, N: tl.constexpr, K: tl.constexpr, STAGES: tl.constexpr, SPLITS: tl.constexpr,
    GATED: tl.constexpr, EVEN: tl.constexpr, HELD: tl.constexpr, LINES: tl.constexpr, BYTES: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """N outputs (of a gated layer: N gates and their N ups) from one part of the inputs."""
    tile, split = tl.program_id(0), tl.program_id(1)
    half = outputs // 2 if GATED else outputs
    n, r = tile * N + tl.arange(0, N), tl.arange(0, R)
    share = tl.cdiv(tl.cdiv(inputs, K), SPLITS) * K
    begin, end = split * share, tl.minimum(split * share + share, inputs)
    up_weight = weight + half.to(tl.int64) * inputs if GATED else weight
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        if not HELD:
            prefetch_tile(weight, n, begin, half, inputs, LINES, BYTES)
        if GATED:
            prefetch_tile(up_weight, n, begin, half, inputs, LINES, BYTES)
    if HELD:
        acc_NR = _held_row(x, weight, n, outputs, inputs, K, PDL)
    else:
        if PDL:
            tl.extra.cuda.gdc_wait()
        acc_NR = dot_tile(x, weight, n, begin, end, rows, half, inputs, stride_x, R, N, K, STAGES, EVEN)
    up_NR = acc_NR
    if GATED:
        up_NR = dot_tile(x, up_weight, n, begin, end, rows, half, inputs, stride_x, R, N, K, STAGES, EVEN)
    if SPLITS > 1:
        parts: tl.constexpr = 2 if GATED else 1
        place_NR = tl.arange(0, N)[:, None] * R + r[None, :]
        base = partial + tile.to(tl.int64) * (SPLITS * parts * N * R)
        tl.store(base + split * parts * N * R + place_NR, acc_NR)
        if GATED:
            tl.store(base + (split * 2 + 1) * N * R + place_NR, up_NR)
        tl.debug_barrier()  # all threads' parts are written before one thread says so
        if tl.atomic_add(counter + tile, 1, sem="acq_rel") < SPLITS - 1:
            return
        tl.store(counter + tile, 0)
        acc_NR = _sum_parts(base + place_NR, N * R * parts, SPLITS)
        if GATED:
            up_NR = _sum_parts(base + N * R + place_NR, N * R * parts, SPLITS)
    acc_NR = _scaled(acc_NR, weight_scale, x_scale, bias, n, half, rows, R)
    if GATED:
        up_scale = None if weight_scale is None else weight_scale + half
        up_bias = None if bias is None else bias + half
        up_NR = _scaled(up_NR, up_scale, x_scale, up_bias, n, half, rows, R)
        acc_NR = acc_NR / (1.0 + tl.exp(-acc_NR)) * up_NR
    keep_NR = (n < half)[:, None] & (r < rows)[None, :]
    tl.store(y + r[None, :] * half + n[:, None], acc_NR.to(y.dtype.element_ty), mask=keep_NR)


@triton.jit
def _held_row(x, weight, n, outputs, inputs, K: tl.constexpr, PDL: tl.constexpr):
    """N outputs of one row, whose weights are in registers before the kernel waits for the row."""
    k_1K = tl.arange(0, K)[None, :]
    inside_NK = (n < outputs)[:, None] & (k_1K < inputs)
    w_NK = tl.load(weight + n.to(tl.int64)[:, None] * inputs + k_1K, mask=inside_NK, other=0.0)
    if PDL:
        tl.extra.cuda.gdc_wait()
    x_1K = tl.load(x + k_1K, mask=k_1K < inputs, other=0.0)
    return tl.sum(w_NK.to(tl.float32) * x_1K.to(tl.float32), 1)[:, None]


@triton.jit
def _sum_parts(first_NR, stride, SPLITS: tl.constexpr):
    """Past the first-level cache, which does not see what other multiprocessors wrote."""
    sum_NR = tl.load(first_NR, cache_modifier=".cg")
    for split in tl.static_range(1, SPLITS):
        sum_NR += tl.load(first_NR + split * stride, cache_modifier=".cg")
    return sum_NR


def gemv(
    x_RK: torch.Tensor,
    weight_NK: torch.Tensor,
    counter: torch.Tensor,
    scale_N: torch.Tensor | None = None,
    x_scale_R: torch.Tensor | None = None,
    bias_N: torch.Tensor | None = None,
    gated: bool = False,
    dtype: torch.dtype | None = None,
    pdl: bool = False,
) -> torch.Tensor:
    """Outputs [R, N] (gated: silu(first half) * second half, [R, N / 2]); `dtype`: x's, of float8 rows bfloat16.

    A float8 weight meets float8 rows (with ``x_scale_R``) or rows of a wider dtype, to which it is cast. ``counter``:
    int32 zeros, as many as `counters_needed` says, which no kernel on another stream may share.
    """
    (rows, inputs), outputs = x_RK.shape, weight_NK.shape[0]
    assert 0 < rows <= MAX_ROWS and weight_NK.is_contiguous() and x_RK.stride(1) == 1
    tile = tile_of(rows, weight_NK, gated)
    width = outputs // 2 if gated else outputs
    tiles, steps = triton.cdiv(width, tile.outputs), triton.cdiv(inputs, tile.inputs)
    splits = _splits(tiles, steps, multiprocessors(x_RK.device)) if tile.rows > 1 else 1
    out_dtype = dtype or (torch.bfloat16 if x_RK.dtype.itemsize == 1 else x_RK.dtype)
    y = torch.empty(rows, width, dtype=out_dtype, device=x_RK.device)
    floats = tiles * splits * tile.outputs * tile.rows * (2 if gated else 1) if splits > 1 else 0
    partial = torch.empty(floats, dtype=torch.float32, device=x_RK.device)
    _gemv[(tiles, splits)](
        x_RK, weight_NK, scale_N, x_scale_R, bias_N, y, partial, counter, rows, outputs, inputs, x_RK.stride(0),
        R=tile.rows, N=tile.outputs, K=tile.inputs, STAGES=tile.stages, SPLITS=splits, GATED=gated,
        EVEN=inputs % tile.inputs == 0, HELD=tile.held,
        LINES=prefetched_lines(weight_NK) if tile.rows == 1 else _FIRST_LINES, BYTES=weight_NK.dtype.itemsize,
        PDL=pdl, num_warps=tile.warps, num_stages=tile.stages, **early(pdl),
    )  # fmt: skip
    return y


def prefetched_lines(weight_NK: torch.Tensor) -> int:
    """All lines (128 bytes) of an output's weights, in a power of two."""
    return power_of_two(-(-weight_NK.shape[-1] * weight_NK.dtype.itemsize // 128))


def counters_needed(weight_NK: torch.Tensor) -> int:
    return triton.cdiv(weight_NK.shape[0], gemv_tile(weight_NK.dtype).outputs)


def _splits(tiles: int, steps: int, processors: int) -> int:
    """Two blocks for every multiprocessor, as long as each has two tiles of inputs to read."""
    wanted = power_of_two(-(-2 * processors // tiles))
    return max(1, min(_MAX_SPLITS, wanted, power_of_two(steps // 2 + 1) // 2))
