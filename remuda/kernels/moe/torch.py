"""Mixture of experts in torch. T tokens, k choices per token, E experts of this rank, H hidden, I intermediate."""

from __future__ import annotations

from abc import abstractmethod

import torch

from remuda.kernels.activation.torch import silu_mul
from remuda.kernels.table import Weighting


def route_sigmoid(logits_TE: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Best experts by logit and the sigmoid (in float32) of their logits: (expert_Tk int64, weight_Tk float32)."""
    value_Tk, expert_Tk = logits_TE.max(-1, keepdim=True) if top_k == 1 else logits_TE.topk(top_k, dim=-1)
    return expert_Tk, value_Tk.float().sigmoid_()


def route_softmax(logits_TE: torch.Tensor, top_k: int, renormalize: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Best experts by the softmax (in float32) of their logits: (expert_Tk int64, weight_Tk float32).

    ``renormalize``: a token's weights are divided by their sum.
    """
    weight_Tk, expert_Tk = logits_TE.softmax(-1, dtype=torch.float32).topk(top_k, dim=-1)
    return expert_Tk, weight_Tk.div_(weight_Tk.sum(-1, keepdim=True)) if renormalize else weight_Tk


class RoutedExperts:
    """One expert after the other, each with all its tokens."""

    def __init__(self, weighting: Weighting) -> None:
        self.weighting = weighting

    def __call__(self, x_TH: torch.Tensor, expert_Tk: torch.Tensor, weight_Tk: torch.Tensor) -> torch.Tensor:
        experts = expert_Tk.flatten().tolist()
        if len(experts) == 1:
            return self._weighted(experts[0], x_TH, weight_Tk.to(x_TH.dtype)) if experts[0] >= 0 else x_TH * 0
        y_TH = torch.zeros_like(x_TH)
        rows_of: dict[int, list[int]] = {}
        for row, expert in enumerate(experts):
            rows_of.setdefault(expert, []).append(row)
        rows_of.pop(-1, None)
        top_k = expert_Tk.shape[1]
        weight_R1 = weight_Tk.reshape(-1, 1).to(x_TH.dtype)
        for expert, rows in rows_of.items():
            choice_R = torch.tensor(rows, device=x_TH.device)
            token_R = choice_R if top_k == 1 else choice_R // top_k
            y_TH.index_add_(0, token_R, self._weighted(expert, x_TH[token_R], weight_R1[choice_R]))
        return y_TH

    def _weighted(self, expert: int, x_RH: torch.Tensor, weight_R1: torch.Tensor) -> torch.Tensor:
        if self.weighting is Weighting.INPUT:
            return self._expert(expert, x_RH * weight_R1)
        return self._expert(expert, x_RH) * weight_R1

    @abstractmethod
    def _expert(self, expert: int, x_RH: torch.Tensor) -> torch.Tensor: ...


class Experts(RoutedExperts):
    """Keeps the weights as the checkpoint has them."""

    def __init__(
        self,
        gate_up_EH2I: torch.Tensor,
        down_EIH: torch.Tensor,
        scales: tuple[torch.Tensor, torch.Tensor] | None = None,
        weighting: Weighting = Weighting.INPUT,
    ) -> None:
        super().__init__(weighting)
        self.gate_up_EH2I = gate_up_EH2I
        self.down_EIH = down_EIH
        self.scales = scales

    def _expert(self, expert: int, x_RH: torch.Tensor) -> torch.Tensor:
        dtype = x_RH.dtype
        gate_up_R2I = x_RH @ self.gate_up_EH2I[expert].to(dtype)
        if self.scales is None:
            return silu_mul(gate_up_R2I) @ self.down_EIH[expert]
        gate_up_scale_E2I, down_scale_EH = self.scales
        hidden_RI = silu_mul((gate_up_R2I * gate_up_scale_E2I[expert]).to(dtype))
        return (hidden_RI @ self.down_EIH[expert].to(dtype) * down_scale_EH[expert]).to(dtype)
