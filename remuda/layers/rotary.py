"""Rope angles and query temperature of a step, computed once from its positions. T tokens, D head_dim."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remuda.config.model import RopeScaling
from remuda.kernels.table import KernelTable
from remuda.layers.base import BuildContext, Layer

if TYPE_CHECKING:
    import torch


class RotaryAngles(Layer):
    """Computes what depends on a step's positions alone; every layer reads it.

    ``tuning``: (floor, scale) of Llama 4's temperature in layers without rope: sharper queries far into a context.
    """

    def __init__(
        self,
        context: BuildContext,
        head_dim: int,
        theta: float,
        scaling: RopeScaling | None,
        tuning: tuple[float, float] | None,
    ) -> None:
        self.head_dim = head_dim
        self.theta = theta
        self.scaling = scaling
        self.tuning = tuning
        self.device = context.device

    def bind_own(self, kernels: KernelTable) -> None:
        self.angles = kernels.make_rope_angles(self.head_dim, self.theta, self.scaling, self.tuning, self.device)

    def __call__(self, positions_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """float32 [T, D], cosines of the D / 2 angles, then their sines; and float32 [T] that multiplies queries:
        1 + scale * ln(1 + floor((position + 1) / floor))."""
        return self.angles(positions_T)
