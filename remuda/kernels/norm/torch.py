"""RMS norm and layer norm in torch. T tokens, H hidden."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def rms_norm(x_TH: torch.Tensor, weight_H: torch.Tensor | None, eps: float) -> torch.Tensor:
    """x / rms(x) * weight over the last dimension, computed in float32, in x's dtype. No weight: plain L2 norm."""
    return torch.rms_norm(x_TH, (x_TH.shape[-1],), weight_H, eps)


def add_rms_norm(
    x_TH: torch.Tensor, residual_TH: torch.Tensor, weight_H: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rms_norm(residual + x), residual + x). The caller gives up both inputs: a kernel may reuse their storage."""
    total_TH = residual_TH + x_TH
    return torch.rms_norm(total_TH, (total_TH.shape[-1],), weight_H, eps), total_TH


def layer_norm(x_TH: torch.Tensor, weight_H: torch.Tensor, bias_H: torch.Tensor, eps: float) -> torch.Tensor:
    """(x - mean) / deviation * weight + bias over the last dimension, in x's dtype."""
    return F.layer_norm(x_TH, weight_H.shape, weight_H, bias_H, eps)
