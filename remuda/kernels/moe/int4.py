"""Experts of 4-bit weights: right everywhere, as `linear/int4.py` is. E experts, H hidden, I intermediate, G groups."""

from __future__ import annotations

import torch

from remuda.kernels.linear.int4 import Int4Linear
from remuda.kernels.moe.torch import RoutedExperts
from remuda.kernels.table import Weighting

PackedRows = tuple[torch.Tensor, torch.Tensor]  # words int32 [E, N, K / 8], scales [E, N, G]


class Int4Experts(RoutedExperts):
    """gate_up [E, 2I, H], gate half first, and down [E, H, I]; both stay packed."""

    def __init__(self, gate_up: PackedRows, down: PackedRows, weighting: Weighting = Weighting.INPUT) -> None:
        super().__init__(weighting)
        self._gate_up = [Int4Linear(words, scale, gated=True) for words, scale in zip(*gate_up, strict=True)]
        self._down = [Int4Linear(words, scale) for words, scale in zip(*down, strict=True)]

    def _expert(self, expert: int, x_RH: torch.Tensor) -> torch.Tensor:
        return self._down[expert](self._gate_up[expert](x_RH))
