"""Top-1 experts without waste: tokens sorted by expert, one grouped matrix product per projection.

T tokens, H hidden, E experts, I intermediate, R rows of the sorted buffer (T + padding to multiples of 8 per expert).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ALIGN = 8  # rows; the grouped kernel's backward wants 16-byte aligned groups


def sorted_places(expert_T: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """Row of each token in the sorted buffer, and the groups' ends (int32); the last group takes the buffer's rest."""
    hit_TE = F.one_hot(expert_T, experts).to(torch.int32)
    order_T = (hit_TE.cumsum(0, dtype=torch.int32) * hit_TE).sum(1) - 1
    padded_E = (hit_TE.sum(0) + ALIGN - 1) // ALIGN * ALIGN
    end_E = padded_E.cumsum(0)
    place_T = (end_E - padded_E)[expert_T] + order_T
    end_E = end_E.clone()
    end_E[-1] = expert_T.shape[0] + ALIGN * experts
    return place_T, end_E.to(torch.int32)


class _Sort(torch.autograd.Function):
    """x_TH -> buffer_RH; places are unique, so the backward is a plain gather (and the other way round in _Unsort)."""

    @staticmethod
    def forward(ctx: Any, x_TH: Tensor, place_T: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(place_T)
        return x_TH.new_zeros(rows, x_TH.shape[1]).index_copy_(0, place_T, x_TH)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0].index_select(0, ctx.saved_tensors[0]), None, None


class _Unsort(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_RH: Tensor, place_T: Tensor) -> Tensor:
        ctx.save_for_backward(place_T)
        ctx.rows = y_RH.shape[0]
        return y_RH.index_select(0, place_T)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (place_T,) = ctx.saved_tensors
        return grads[0].new_zeros(ctx.rows, grads[0].shape[1]).index_copy_(0, place_T, grads[0]), None


def silu_mul(gate_up_R2I: Tensor) -> Tensor:
    gate, up = gate_up_R2I.chunk(2, dim=-1)
    return F.silu(gate) * up


def run_experts(
    x_TH: Tensor, place_T: Tensor, end_E: Tensor, gate_up_EH2I: Tensor, down_EIH: Tensor, activation: Any
) -> Tensor:
    """[T, H]: each (already scored) token through its expert."""
    buffer_RH = _Sort.apply(x_TH, place_T, x_TH.shape[0] + ALIGN * gate_up_EH2I.shape[0])
    gate_up = F.grouped_mm(buffer_RH, gate_up_EH2I.to(x_TH.dtype), offs=end_E)
    out_RH = F.grouped_mm(activation(gate_up), down_EIH.to(x_TH.dtype), offs=end_E)
    return _Unsort.apply(out_RH, place_T)
