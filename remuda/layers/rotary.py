"""Rope angles and query temperature of a step, computed once from its positions. T tokens, D head_dim."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remuda.config.model import RopeScaling
from remuda.kernels.table import KernelTable
from remuda.layers.base import BuildContext, Layer

if TYPE_CHECKING:
    import torch


class RotaryAngles(Layer):
    """Computes cos_sin_TD of a step once; every layer with rope reads it."""

    def __init__(self, context: BuildContext, head_dim: int, theta: float, scaling: RopeScaling | None) -> None:
        self.head_dim = head_dim
        self.theta = theta
        self.scaling = scaling
        self.device = context.device

    def bind_own(self, kernels: KernelTable) -> None:
        self.angles = kernels.make_rope_angles(self.head_dim, self.theta, self.scaling, self.device)

    def __call__(self, positions_T: torch.Tensor) -> torch.Tensor:
        """float32 [T, D]: cosines of the D / 2 angles, then their sines."""
        return self.angles(positions_T)


class QueryTemperature(Layer):
    """Llama 4's temperature tuning of layers without rope: sharper queries far into a context."""

    def __init__(self, floor: float, scale: float) -> None:
        self.floor = floor
        self.scale = scale

    def bind_own(self, kernels: KernelTable) -> None:
        self.query_temperature = kernels.query_temperature

    def __call__(self, positions_T: torch.Tensor) -> torch.Tensor:
        """float32 [T]: 1 + scale * ln(1 + floor((position + 1) / floor))."""
        return self.query_temperature(positions_T, self.floor, self.scale)
