"""RMS norm with a weight. T tokens, H hidden."""

from __future__ import annotations

import torch

from remuda.kernels import norm
from remuda.layers.base import BuildContext, Layer
from remuda.weights.parameter import Parameter, Slice, whole


class RMSNorm(Layer):
    """Replicated on every rank."""

    def __init__(self, context: BuildContext, module: str, size: int, eps: float) -> None:
        shape = (size,)
        self.weight = Parameter(shape, context.dtype, (Slice(f"{module}.weight", shape, whole(shape), whole(shape)),))
        self.eps = eps

    def pack(self) -> None:
        self.weight_H = self.weight.take()

    def __call__(self, x_TH: torch.Tensor) -> torch.Tensor:
        return norm.rms_norm(x_TH, self.weight_H, self.eps)

    def add(self, x_TH: torch.Tensor, residual_TH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm(residual + x), residual + x); may overwrite both inputs."""
        return norm.add_rms_norm(x_TH, residual_TH, self.weight_H, self.eps)
