"""x [T, H]; weight, bias [H]."""

from __future__ import annotations

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    rows = []
    for row in x.double():
        mean_square = sum(value * value for value in row) / len(row)
        scale = torch.ones(len(row)) if weight is None else weight.double()
        rows.append(row / (mean_square + eps) ** 0.5 * scale)
    return torch.stack(rows)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    total = (residual + x).to(x.dtype)  # rounded: it is what the next layer adds to
    return rms_norm(total, weight, eps), total


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    rows = []
    for row in x.double():
        mean = sum(row) / len(row)
        variance = sum((value - mean) ** 2 for value in row) / len(row)
        rows.append((row - mean) / (variance + eps) ** 0.5 * weight.double() + bias.double())
    return torch.stack(rows)
