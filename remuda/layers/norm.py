"""Norms with weights, replicated on every rank. T tokens, H hidden."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remuda.kernels.table import KernelTable
from remuda.layers.base import BuildContext, Layer
from remuda.weights.parameter import Parameter, Slice, whole

if TYPE_CHECKING:
    import torch


def replicated(context: BuildContext, source: str, shape: tuple[int, ...]) -> Parameter:
    """A checkpoint tensor that every rank holds whole, in the compute dtype."""
    return Parameter(shape, context.dtype, (Slice(source, shape, whole(shape), whole(shape)),))


class RMSNorm(Layer):
    part = "norms"

    def __init__(self, context: BuildContext, module: str, size: int, eps: float) -> None:
        self.weight = replicated(context, f"{module}.weight", (size,))
        self.eps = eps
        self.comm = context.comm

    def pack(self, kernels: KernelTable) -> None:
        self.weight_H = self.weight.take()

    def bind_own(self, kernels: KernelTable) -> None:
        self.rms_norm, self.add_rms_norm = kernels.rms_norm, kernels.add_rms_norm

    def __call__(self, x_TH: torch.Tensor) -> torch.Tensor:
        return self.rms_norm(x_TH, self.weight_H, self.eps)

    def reduce_add(self, partial_TH: torch.Tensor, residual_TH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm(residual + x), residual + x), x the sum of the ranks' partials; may overwrite both inputs."""
        return self.comm.all_reduce_add_norm(partial_TH, residual_TH, self.weight_H, self.eps, self.add_rms_norm)


class LayerNorm(Layer):
    def __init__(self, context: BuildContext, module: str, size: int, eps: float) -> None:
        self.weight = replicated(context, f"{module}.weight", (size,))
        self.bias = replicated(context, f"{module}.bias", (size,))
        self.eps = eps

    def pack(self, kernels: KernelTable) -> None:
        self.weight_H, self.bias_H = self.weight.take(), self.bias.take()

    def bind_own(self, kernels: KernelTable) -> None:
        self.layer_norm = kernels.layer_norm

    def __call__(self, x_TH: torch.Tensor) -> torch.Tensor:
        return self.layer_norm(x_TH, self.weight_H, self.bias_H, self.eps)
