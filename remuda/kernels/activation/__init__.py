"""Gated activations."""

from __future__ import annotations

import torch

from remuda.kernels.activation import naive, native
from remuda.kernels.native import runtime


def silu_mul(gate_up_T2I: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up -> [T, I]; the gate is the first half of the last dimension."""
    if runtime.serving and gate_up_T2I.dtype is torch.bfloat16:
        return native.silu_mul(gate_up_T2I)
    return naive.silu_mul(gate_up_T2I)
