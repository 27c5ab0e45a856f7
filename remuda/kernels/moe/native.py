"""Mixture of experts in C, bf16 with weights of bf16 or float8.

T tokens, k choices per token, E experts of this rank, H hidden, I intermediate.
"""

from __future__ import annotations

import ctypes

import torch

from remuda.kernels import table
from remuda.kernels.linear.native import DTYPES, describe, pack, packed_order, packed_size
from remuda.kernels.moe import torch as torch_moe
from remuda.kernels.native import runtime
from remuda.kernels.native.structs import PackedWeight
from remuda.kernels.table import Weighting

_SIGMOID, _SOFTMAX, _SOFTMAX_OF_CHOSEN = 0, 1, 2  # moe.c scoring


def route_sigmoid(logits_TE: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    return _route(logits_TE, top_k, _SIGMOID)


def route_softmax(logits_TE: torch.Tensor, top_k: int, renormalize: bool) -> tuple[torch.Tensor, torch.Tensor]:
    return _route(logits_TE, top_k, _SOFTMAX_OF_CHOSEN if renormalize else _SOFTMAX)


def _route(logits_TE: torch.Tensor, top_k: int, scoring: int) -> tuple[torch.Tensor, torch.Tensor]:
    logits_TE = logits_TE.contiguous()
    tokens, experts = logits_TE.shape
    expert_Tk = torch.empty((tokens, top_k), dtype=torch.int64)
    weight_Tk = torch.empty((tokens, top_k), dtype=torch.float32)
    runtime.library.remuda_route(
        logits_TE.data_ptr(), expert_Tk.data_ptr(), weight_Tk.data_ptr(), tokens, experts, top_k, scoring
    )
    return expert_Tk, weight_Tk


def make_experts(
    gate_up_EH2I: torch.Tensor,
    down_EIH: torch.Tensor,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
    weighting: Weighting = Weighting.INPUT,
) -> table.Experts:
    """Packed for C where it serves these weights; torch serves the others."""
    kind = Experts if gate_up_EH2I.dtype in DTYPES else torch_moe.Experts
    return kind(gate_up_EH2I, down_EIH, scales, weighting)


def repack_experts(experts: table.Experts) -> table.Experts:
    if not isinstance(experts, torch_moe.Experts):
        return experts
    return make_experts(experts.gate_up_EH2I, experts.down_EIH, experts.scales, experts.weighting)


class _PackedStack:
    """One packed weight per expert, in one tensor; `address` is that of the array of C views."""

    def __init__(self, weight_EKN: torch.Tensor, scale_EN: torch.Tensor | None, gated: bool) -> None:
        count, k, n = weight_EKN.shape
        size = packed_size(n, k, gated)
        self._packed = runtime.weights.empty(count, size, dtype=weight_EKN.dtype)
        self._scales = [packed_order(None if scale_EN is None else scale_EN[e], gated) for e in range(count)]
        self._views = (PackedWeight * count)()
        for e in range(count):
            pack(weight_EKN[e].T, self._packed[e], gated)
            self._views[e] = describe(self._packed[e], n, k, gated, self._scales[e])
        self.address = ctypes.addressof(self._views)


class Experts:
    def __init__(
        self,
        gate_up_EH2I: torch.Tensor,
        down_EIH: torch.Tensor,
        scales: tuple[torch.Tensor, torch.Tensor] | None,
        weighting: Weighting,
    ) -> None:
        gate_up_scale, down_scale = scales or (None, None)
        self._weigh_output = weighting is Weighting.OUTPUT
        self._count = gate_up_EH2I.shape[0]
        self._gate_up = _PackedStack(gate_up_EH2I, gate_up_scale, gated=True)
        self._down = _PackedStack(down_EIH, down_scale, gated=False)

    def __call__(self, x_TH: torch.Tensor, expert_Tk: torch.Tensor, weight_Tk: torch.Tensor) -> torch.Tensor:
        x_TH, expert_Tk, weight_Tk = x_TH.contiguous(), expert_Tk.contiguous(), weight_Tk.contiguous()
        tokens, hidden = x_TH.shape
        y_TH = torch.empty_like(x_TH)
        runtime.library.remuda_experts(
            self._gate_up.address, self._down.address, self._count, x_TH.data_ptr(), hidden,
            expert_Tk.data_ptr(), weight_Tk.data_ptr(), tokens, expert_Tk.shape[1], y_TH.data_ptr(), hidden,
            self._weigh_output,
        )  # fmt: skip
        return y_TH
