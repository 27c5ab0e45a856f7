"""RMS norm in C, bf16. T tokens, H hidden."""

from __future__ import annotations

import torch

from remuda.kernels.native import runtime


def rms_norm(x_TH: torch.Tensor, weight_H: torch.Tensor | None, eps: float) -> torch.Tensor:
    x_TH = x_TH.contiguous()
    y_TH = torch.empty_like(x_TH)
    hidden = x_TH.shape[-1]
    weight = None if weight_H is None else weight_H.data_ptr()
    runtime.library.remuda_rms_norm(x_TH.data_ptr(), None, weight, y_TH.data_ptr(), x_TH.numel() // hidden, hidden, eps)
    return y_TH


def add_rms_norm(
    x_TH: torch.Tensor, residual_TH: torch.Tensor, weight_H: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both inputs are overwritten: x by the norm, the residual by the sum."""
    x_TH, residual_TH = x_TH.contiguous(), residual_TH.contiguous()
    hidden = x_TH.shape[-1]
    x = x_TH.data_ptr()
    runtime.library.remuda_rms_norm(
        x, residual_TH.data_ptr(), weight_H.data_ptr(), x, x_TH.numel() // hidden, hidden, eps
    )
    return x_TH, residual_TH
