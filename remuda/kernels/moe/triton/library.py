"""Experts for prompts by torch's grouped products (Hopper): it reads every expert, so it is for many rows.

T tokens, k choices per token, R = T k rows, E experts, H hidden, I intermediate, J = 2 I gate and up in turns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from remuda.kernels.linear.quantize import quantize_rows
from remuda.kernels.moe.triton.grouped import sum_choices
from remuda.kernels.moe.triton.sort import sort_rows
from remuda.kernels.moe.triton.weights import ExpertWeights


def experts_library(
    weights: ExpertWeights, x_TH: torch.Tensor, expert_Tk: torch.Tensor, weight_Tk: torch.Tensor, weigh_input: bool
) -> torch.Tensor:
    """Sum over each token's choices of weight * expert(x), or expert(weight * x): [T, H] in bfloat16.

    Float8 weights meet activations quantized per row.
    """
    hidden, top_k = x_TH.shape[1], expert_Tk.shape[1]
    order = sort_rows(expert_Tk, weights.down_EHI.shape[0], block_m=128)
    token_R = order.row_R if top_k == 1 else order.row_R // top_k
    gate_up_RJ = _product(x_TH, token_R, weights.gate_up_EJH, weights.gate_up_scale_EJ, order.end_E)
    rows, width = gate_up_RJ.shape[0], weights.down_EHI.shape[2]
    h_RI = torch.empty((rows, width), dtype=x_TH.dtype, device=x_TH.device)
    block = min(1024, triton.next_power_of_2(width))
    _swiglu_kernel[(triton.cdiv(width, block), rows)](
        gate_up_RJ, h_RI, weight_Tk if weigh_input else None, order.row_R, width, BLOCK=block, num_warps=4
    )
    sorted_RH = _product(h_RI, None, weights.down_EHI, weights.down_scale_EH, order.end_E)
    y_RH = torch.empty_like(sorted_RH)
    block = min(1024, triton.next_power_of_2(hidden))
    _return_kernel[(triton.cdiv(hidden, block), rows)](
        sorted_RH, y_RH, None if weigh_input else weight_Tk, order.row_R, order.end_E[-1:], hidden, BLOCK=block,
        num_warps=4,
    )  # fmt: skip
    return y_RH if top_k == 1 else sum_choices(y_RH, top_k)


def _product(
    x: torch.Tensor,
    row_R: torch.Tensor | None,
    weight_ENK: torch.Tensor,
    scale_EN: torch.Tensor | None,
    end: torch.Tensor,
) -> torch.Tensor:
    """Rows `row_R` of x, in order of their experts, times each one's weight."""
    if scale_EN is None:
        x = x if row_R is None else x.index_select(0, row_R)
        return torch._grouped_mm(x, weight_ENK.transpose(1, 2), offs=end)
    q, scale = quantize_rows(x)
    if row_R is not None:
        q, scale = q.view(torch.uint8).index_select(0, row_R).view(q.dtype), scale.index_select(0, row_R)
    return torch._scaled_grouped_mm(
        q, weight_ENK.transpose(1, 2), scale, scale_EN, offs=end, out_dtype=torch.bfloat16, use_fast_accum=True
    )


@triton.jit
def _swiglu_kernel(gate_up, h, route_weight, row_order, width, BLOCK: tl.constexpr):
    place = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pair = tl.program_id(0) * (2 * BLOCK) + tl.arange(0, 2 * BLOCK)
    value = tl.load(gate_up + place * (2 * width) + pair, mask=pair < 2 * width, other=0.0).to(tl.float32)
    if route_weight is not None:
        value *= tl.load(route_weight + tl.load(row_order + place))
    gate, up = tl.split(tl.reshape(value, (BLOCK, 2)))
    value = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(h + place * width + column, value.to(h.dtype.element_ty), mask=column < width)


@triton.jit
def _return_kernel(rows, out, route_weight, row_order, end, hidden, BLOCK: tl.constexpr):
    """From sorted order to the rows' own; rows of nobody's experts give zeros."""
    place = tl.program_id(1).to(tl.int64)
    row = tl.load(row_order + place).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    computed = place < tl.load(end)
    value = tl.load(rows + place * hidden + column, mask=(column < hidden) & computed, other=0.0)
    if route_weight is not None:
        value = value.to(tl.float32) * tl.load(route_weight + row)
    tl.store(out + row * hidden + column, value.to(out.dtype.element_ty), mask=column < hidden)
