"""Gated activations in C, bf16. T tokens, I intermediate."""

from __future__ import annotations

import torch

from remuda.kernels.native import runtime


def silu_mul(gate_up_T2I: torch.Tensor) -> torch.Tensor:
    gate_up_T2I = gate_up_T2I.contiguous()
    *rows, width = gate_up_T2I.shape
    y_TI = gate_up_T2I.new_empty(*rows, width // 2)
    runtime.library.remuda_silu_mul(gate_up_T2I.data_ptr(), y_TI.data_ptr(), gate_up_T2I.numel() // width, width // 2)
    return y_TI
