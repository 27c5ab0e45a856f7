"""Experts for a few tokens: two kernels that read the chosen experts' weights as streams.

A program makes a few outputs of one token: it keeps a sum per output and lane until all inputs are through, so nothing
is exchanged between threads inside the loop. Activations stay as they are, and float8 weights are widened on the way:
at these sizes arithmetic is free, and it is more exact than quantizing what the token brings.

T tokens, k choices per token, R = T k rows, E experts, H hidden, I intermediate, J = 2 I gate and up in turns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from remuda.kernels.device import early
from remuda.kernels.moe.triton.weights import ExpertWeights

_LINE_BYTES = 128  # what a prefetch asks for


@dataclass(frozen=True)
class Stream:
    """How a kernel walks along its weights: rows by columns of one step, warps that share it, steps fetched ahead."""

    block_n: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 1


def experts_small(
    weights: ExpertWeights,
    x_TH: torch.Tensor,
    expert_Tk: torch.Tensor,
    weight_Tk: torch.Tensor,
    weigh_input: bool,
    gate_up: Stream,
    down: Stream,
    pdl: bool = False,
) -> torch.Tensor:
    """Sum over each token's choices of weight * expert(x), or expert(weight * x): [T, H] in x's dtype.

    ``pdl``: each kernel starts while its predecessor ends, and down's weights are on their way before h is there.
    """
    (tokens, hidden), top_k = x_TH.shape, expert_Tk.shape[1]
    width = weights.down_EHI.shape[2]
    h_RI = torch.empty((tokens * top_k, width), dtype=x_TH.dtype, device=x_TH.device)
    y_TH = torch.empty((tokens, hidden), dtype=x_TH.dtype, device=x_TH.device)
    _gate_up_kernel[(triton.cdiv(2 * width, gate_up.block_n), tokens * top_k)](
        x_TH, x_TH.stride(0), weights.gate_up_EJH, weights.gate_up_scale_EJ, expert_Tk, weight_Tk, h_RI, hidden, width,
        TOP_K=top_k, WEIGH=weigh_input, BLOCK_N=gate_up.block_n, BLOCK_K=gate_up.block_k, STAGES=gate_up.num_stages,
        PDL=pdl, num_warps=gate_up.num_warps, **early(pdl),
    )  # fmt: skip
    _down_kernel[(triton.cdiv(hidden, down.block_n), tokens)](
        h_RI, weights.down_EHI, weights.down_scale_EH, expert_Tk, weight_Tk, y_TH, hidden, width,
        TOP_K=top_k, WEIGH=not weigh_input, BLOCK_N=down.block_n, BLOCK_K=down.block_k, STAGES=down.num_stages,
        PDL=pdl, LINES=triton.next_power_of_2(triton.cdiv(width * weights.down_EHI.element_size(), _LINE_BYTES)),
        num_warps=down.num_warps, **early(pdl),
    )  # fmt: skip
    return y_TH


@triton.jit
def dot_rows(x, weight, scale, outputs, inputs, n, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr):
    """Outputs `n` of weight @ x, float32. The weight is [outputs, inputs] in sequence; rows past the end give 0."""
    k = tl.arange(0, BLOCK_K)
    rows_N1, inside_N1 = weight + n[:, None] * inputs, (n < outputs)[:, None]
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for start in tl.range(0, inputs, BLOCK_K, num_stages=STAGES):
        k_1K = (start + k)[None, :]
        w_NK = tl.load(rows_N1 + k_1K, mask=(k_1K < inputs) & inside_N1, other=0.0)
        x_1K = tl.load(x + k_1K, mask=k_1K < inputs, other=0.0)
        total += w_NK.to(tl.float32) * x_1K.to(tl.float32)
    y_N = tl.sum(total, 1)
    if scale is not None:
        y_N *= tl.load(scale + n, mask=n < outputs, other=0.0)
    return y_N


@triton.jit
def prefetch_rows(weight, n, outputs, inputs, LINES: tl.constexpr):
    """Ask the second-level cache for whole rows; lines past the end of one ask for its last again."""
    per_line: tl.constexpr = 128 // (weight.dtype.element_ty.primitive_bitwidth // 8)
    column = tl.minimum(tl.arange(0, LINES) * per_line, inputs - 1)
    at = weight + tl.minimum(n, outputs - 1)[:, None] * inputs + column[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [at.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _gate_up_kernel(
    x, x_stride, weight, scale, expert, route_weight, h, hidden, width,
    TOP_K: tl.constexpr, WEIGH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """h[row] = silu(gate) * up, for BLOCK_N / 2 of a row's columns. A weighted input weighs both sums."""
    row = tl.program_id(1)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()  # not before: what down reads while it waits is there now
    e = tl.load(expert + row).to(tl.int64)
    if e < 0:
        return  # nobody reads this row's h
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    weight += e * (2 * width) * hidden
    if scale is not None:
        scale += e * (2 * width)
    y_N = dot_rows(x + row // TOP_K * x_stride, weight, scale, 2 * width, hidden, n, BLOCK_N, BLOCK_K, STAGES)
    if WEIGH:
        y_N *= tl.load(route_weight + row)
    gate, up = tl.split(tl.reshape(y_N, (BLOCK_N // 2, 2)))
    column = tl.program_id(0) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    value = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(h + row * width + column, value.to(h.dtype.element_ty), mask=column < width)


@triton.jit
def _down_kernel(
    h, weight, scale, expert, route_weight, y, hidden, width,
    TOP_K: tl.constexpr, WEIGH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    PDL: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """y[token] = sum over its choices of down(h), for BLOCK_N columns: in the order of choices, so always the same."""
    token = tl.program_id(1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    if PDL:  # the routes are older than gate_up, which waited for them before it let this kernel start
        tl.extra.cuda.gdc_launch_dependents()
        for choice in tl.range(0, TOP_K):
            e = tl.load(expert + token * TOP_K + choice).to(tl.int64)
            if e >= 0:
                prefetch_rows(weight + e * hidden * width, n, hidden, width, LINES)
        tl.extra.cuda.gdc_wait()
    y_N = tl.zeros((BLOCK_N,), tl.float32)
    for choice in tl.range(0, TOP_K):
        row = token * TOP_K + choice
        e = tl.load(expert + row).to(tl.int64)
        if e >= 0:
            factor = tl.load(route_weight + row) if WEIGH else 1.0
            own_weight = weight + e * hidden * width
            own_scale = None if scale is None else scale + e * hidden
            y_N += factor * dot_rows(h + row * width, own_weight, own_scale, hidden, width, n, BLOCK_N, BLOCK_K, STAGES)
    tl.store(y + token * hidden + n, y_N.to(y.dtype.element_ty), mask=n < hidden)
