"""Gated and plain activations, value by value."""

from __future__ import annotations

import math

import torch


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """[T, 2 I] -> [T, I]; the gate is the first half."""
    size = gate_up.shape[-1] // 2
    rows = [
        [gate / (1 + math.exp(-gate)) * up for gate, up in zip(row[:size], row[size:], strict=True)]
        for row in gate_up.double().tolist()
    ]
    return torch.tensor(rows, dtype=torch.float64)


def gelu(x: torch.Tensor) -> torch.Tensor:
    """[T, I]: x times the probability that a normal variable is below x."""
    rows = [[value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in row] for row in x.double().tolist()]
    return torch.tensor(rows, dtype=torch.float64)
