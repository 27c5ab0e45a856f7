"""Routing and routed experts, token by token and choice by choice."""

from __future__ import annotations

import math

import torch

from remuda.kernels.table import Weighting
from tests.kernels.naive.activation import silu_mul


def best(logits: list[float], top_k: int) -> list[int]:
    return sorted(range(len(logits)), key=lambda expert: (-logits[expert], expert))[:top_k]


def route_sigmoid(logits: torch.Tensor, top_k: int) -> tuple[list[list[int]], list[list[float]]]:
    """logits [T, E] -> of each token its experts and their weights."""
    experts = [best(row, top_k) for row in logits.double().tolist()]
    weights = [
        [1 / (1 + math.exp(-row[e])) for e in chosen] for row, chosen in zip(logits.tolist(), experts, strict=True)
    ]
    return experts, weights


def route_softmax(logits: torch.Tensor, top_k: int, renormalize: bool) -> tuple[list[list[int]], list[list[float]]]:
    experts, weights = [], []
    for row in logits.double().tolist():
        chosen = best(row, top_k)
        among = chosen if renormalize else range(len(row))
        total = sum(math.exp(row[e]) for e in among)
        experts.append(chosen)
        weights.append([math.exp(row[e]) / total for e in chosen])
    return experts, weights


def experts(
    x: torch.Tensor,  # [T, H]
    expert: torch.Tensor,  # [T, k], -1: another rank's
    weight: torch.Tensor,  # [T, k]
    gate_up: torch.Tensor,  # [E, H, 2 I]
    down: torch.Tensor,  # [E, I, H]
    scales: tuple[torch.Tensor, torch.Tensor] | None,  # [E, 2 I], [E, H]
    weighting: Weighting,
) -> torch.Tensor:
    y = torch.zeros(x.shape, dtype=torch.float64)
    for token in range(len(x)):
        for chosen, factor in zip(expert[token].tolist(), weight[token].tolist(), strict=True):
            if chosen < 0:
                continue
            row = x[token].double() * (factor if weighting is Weighting.INPUT else 1)
            hidden = row @ gate_up[chosen].double()
            hidden = silu_mul((hidden if scales is None else hidden * scales[0][chosen])[None])[0]
            result = hidden @ down[chosen].double()
            result = result if scales is None else result * scales[1][chosen]
            y[token] += result * (factor if weighting is Weighting.OUTPUT else 1)
    return y
