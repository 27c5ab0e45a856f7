"""RMS norm, alone or after a residual addition."""

from __future__ import annotations

import torch

from remuda.kernels.native import runtime
from remuda.kernels.norm import naive, native


def rms_norm(x_TH: torch.Tensor, weight_H: torch.Tensor | None, eps: float) -> torch.Tensor:
    """x / rms(x) * weight over the last dimension, computed in float32, in x's dtype. No weight: plain L2 norm."""
    if runtime.serving and x_TH.dtype is torch.bfloat16:
        return native.rms_norm(x_TH, weight_H, eps)
    return naive.rms_norm(x_TH, weight_H, eps)


def add_rms_norm(
    x_TH: torch.Tensor, residual_TH: torch.Tensor, weight_H: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rms_norm(residual + x), residual + x). The caller gives up both inputs: a kernel may reuse their storage."""
    if runtime.serving and x_TH.dtype is torch.bfloat16:
        return native.add_rms_norm(x_TH, residual_TH, weight_H, eps)
    return naive.add_rms_norm(x_TH, residual_TH, weight_H, eps)
