"""Experts for many rows: products of tiles of rows, each with its own expert's weight.

The same kernel serves a batch of decodes, where a tile of 16 rows streams its expert's weight once, and prompts, where
tiles of 128 rows fill the tensor cores. gate_up gathers its rows from the tokens and leaves silu(gate) * up in sorted
order; down reads that order and returns to the rows' own.

T tokens, k choices per token, R = T k rows, E experts, H hidden, I intermediate, J = 2 I gate and up in turns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from remuda.kernels.device import early
from remuda.kernels.linear.quantize import quantize_rows
from remuda.kernels.moe.triton.sort import SortedRows, sort_rows
from remuda.kernels.moe.triton.weights import ExpertWeights


@dataclass(frozen=True)
class Tile:
    """One static configuration of the product. ``block_n`` counts gate and up alike; ``tma``: the copy engine of
    Hopper fetches the weight."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 4
    group: int = 8  # tiles of rows that pass over a block of outputs before the next block is fetched
    tma: bool = False


def experts_grouped(
    weights: ExpertWeights,
    x_TH: torch.Tensor,
    expert_Tk: torch.Tensor,
    weight_Tk: torch.Tensor,
    weigh_input: bool,
    gate_up: Tile,
    down: Tile,
    quantize: bool = False,
    pdl: bool = False,
    quantized: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Sum over each token's choices of weight * expert(x), or expert(weight * x): [T, H] in x's dtype.

    ``quantize``: float8 products, of activations quantized per row as float8 checkpoints are made for; otherwise float8
    weights are widened on the way to the tensor cores. ``quantized``: x as `quantize_rows` gives it, if it is there.
    """
    (tokens, hidden), top_k = x_TH.shape, expert_Tk.shape[1]
    width, device, dtype = weights.down_EHI.shape[2], x_TH.device, x_TH.dtype
    assert gate_up.block_m == down.block_m, "both products walk over the same tiles"
    order = sort_rows(expert_Tk, weights.down_EHI.shape[0], gate_up.block_m, pdl)
    x, x_scale = quantized or (quantize_rows(x_TH, pdl) if quantize else (x_TH, None))
    h_RI = torch.empty((tokens * top_k, width), dtype=dtype, device=device)
    _product(
        x, x_scale, weights.gate_up_EJH, weights.gate_up_scale_EJ, weight_Tk if weigh_input else None, order, h_RI,
        top_k, gate_up, gated=True, pdl=pdl,
    )  # fmt: skip
    h, h_scale = quantize_rows(h_RI, pdl) if quantize else (h_RI, None)
    y_RH = torch.empty((tokens * top_k, hidden), dtype=dtype, device=device)
    _product(
        h, h_scale, weights.down_EHI, weights.down_scale_EH, None if weigh_input else weight_Tk, order, y_RH,
        top_k, down, gated=False, pdl=pdl,
    )  # fmt: skip
    return y_RH if top_k == 1 else sum_choices(y_RH, top_k, pdl)


def sum_choices(y_RH: torch.Tensor, top_k: int, pdl: bool = False) -> torch.Tensor:
    """[T k, H] -> [T, H], in float32 and in order."""
    rows, hidden = y_RH.shape
    y_TH = torch.empty((rows // top_k, hidden), dtype=y_RH.dtype, device=y_RH.device)
    block = min(1024, triton.next_power_of_2(hidden))
    _sum_kernel[(triton.cdiv(hidden, block), rows // top_k)](
        y_RH, y_TH, hidden, TOP_K=top_k, BLOCK=block, PDL=pdl, num_warps=4, **early(pdl)
    )
    return y_TH


def _product(
    x: torch.Tensor,
    x_scale: torch.Tensor | None,
    weight_ENK: torch.Tensor,
    scale_EN: torch.Tensor | None,
    route_weight: torch.Tensor | None,
    order: SortedRows,
    out: torch.Tensor,
    top_k: int,
    tile: Tile,
    gated: bool,
    pdl: bool,
) -> None:
    experts, n, k = weight_ENK.shape
    weight: Any = weight_ENK
    if tile.tma:
        weight = TensorDescriptor.from_tensor(weight_ENK.view(experts * n, k), [tile.block_n, tile.block_k])
    _product_kernel[(order.num_tiles * triton.cdiv(n, tile.block_n),)](
        x, x.stride(0), x_scale, weight, scale_EN, route_weight, order.row_R, order.tiles_N3, out,
        order.num_tiles, experts, n, k,
        TOP_K=top_k, GATED=gated, TMA=tile.tma, EVEN_K=k % tile.block_k == 0,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, GROUP=tile.group,
        PDL=pdl, num_warps=tile.num_warps, num_stages=tile.num_stages, **early(pdl),
    )  # fmt: skip


@triton.jit
def _place_of_program(num_tiles, blocks, GROUP: tl.constexpr):
    """(tile, block of outputs): GROUP tiles in turn over one block, so that its weight is fetched once for them."""
    pid = tl.program_id(0)
    first = pid // (GROUP * blocks) * GROUP
    size = tl.minimum(num_tiles - first, GROUP)
    inside = pid % (GROUP * blocks)
    return first + inside % size, inside // size


@triton.jit(do_not_specialize=["num_tiles", "experts"])
def _product_kernel(
    x, x_stride, x_scale, weight, scale, route_weight, row_order, tiles, out, num_tiles, experts, outputs, inputs,
    TOP_K: tl.constexpr, GATED: tl.constexpr, TMA: tl.constexpr, EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    tile, block = _place_of_program(num_tiles, tl.cdiv(outputs, BLOCK_N), GROUP)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    e = tl.load(tiles + tile * 3)
    if e < 0 or (GATED and e == experts):
        return
    first, end = tl.load(tiles + tile * 3 + 1), tl.load(tiles + tile * 3 + 2)
    place = first + tl.arange(0, BLOCK_M)
    row = tl.load(row_order + place, mask=place < end, other=0)
    x_row, out_row = (row // TOP_K, place) if GATED else (tl.where(place < end, place, 0), row)
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if e < experts:
        k = tl.arange(0, BLOCK_K)
        x_MK = x + x_row.to(tl.int64)[:, None] * x_stride + k[None, :]
        if not TMA:
            weight_KN = weight + e.to(tl.int64) * outputs * inputs + (n % outputs)[None, :] * inputs + k[:, None]
        for start in tl.range(0, inputs, BLOCK_K):
            if EVEN_K:
                a_MK = tl.load(x_MK + start)
            else:
                a_MK = tl.load(x_MK + start, mask=(start + k < inputs)[None, :], other=0.0)
            if TMA:
                b_KN = weight.load([e * outputs + block * BLOCK_N, start]).T
            elif EVEN_K:
                b_KN = tl.load(weight_KN + start)
            else:
                b_KN = tl.load(weight_KN + start, mask=(start + k < inputs)[:, None], other=0.0)
            total = tl.dot(a_MK, b_KN.to(a_MK.dtype), total, input_precision="ieee")
        if scale is not None:
            total *= tl.load(scale + e * outputs + n, mask=n < outputs, other=0.0)[None, :]
        if x_scale is not None:
            total *= tl.load(x_scale + x_row)[:, None]
        if route_weight is not None:
            total *= tl.load(route_weight + row)[:, None]
    if GATED:
        gate, up = tl.split(tl.reshape(total, (BLOCK_M, BLOCK_N // 2, 2)))
        value, width = gate / (1.0 + tl.exp(-gate)) * up, outputs // 2
        column = block * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    else:
        value, width, column = total, outputs, n
    to = out + out_row.to(tl.int64)[:, None] * width + column[None, :]
    tl.store(to, value.to(out.dtype.element_ty), mask=(place < end)[:, None] & (column < width)[None, :])


@triton.jit
def _sum_kernel(rows, out, hidden, TOP_K: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    token = tl.program_id(1).to(tl.int64)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for choice in tl.static_range(TOP_K):
        row = token * TOP_K + choice
        total += tl.load(rows + row * hidden + column, mask=column < hidden, other=0.0).to(tl.float32)
    tl.store(out + token * hidden + column, total.to(out.dtype.element_ty), mask=column < hidden)
