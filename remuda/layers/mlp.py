"""The dense gated MLP. T tokens, H hidden."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remuda.layers.base import BuildContext, Layer
from remuda.layers.linear import ColumnParallelLinear, RowParallelLinear

if TYPE_CHECKING:
    import torch


class MLP(Layer):
    """down(silu(gate(x)) * up(x)): this rank's partial sum of it."""

    part = "dense MLPs"

    def __init__(self, context: BuildContext, prefix: str, intermediate_size: int) -> None:
        hidden = context.config.hidden_size
        self.gate_up = ColumnParallelLinear(
            context, [f"{prefix}.gate_proj", f"{prefix}.up_proj"], hidden, intermediate_size, gated=True
        )
        self.down = RowParallelLinear(context, f"{prefix}.down_proj", intermediate_size, hidden)

    def __call__(self, x_TH: torch.Tensor) -> torch.Tensor:
        return self.down(self.gate_up(x_TH))
