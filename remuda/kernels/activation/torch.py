"""Activations in torch. T tokens, I intermediate."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def silu_mul(gate_up_T2I: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up -> [T, I]; the gate is the first half of the last dimension."""
    gate_TI, up_TI = gate_up_T2I.chunk(2, dim=-1)
    return F.silu(gate_TI).mul_(up_TI)


def gelu(x: torch.Tensor) -> torch.Tensor:
    """Exact, by the error function."""
    return F.gelu(x)
