"""FP8 made of floats while they are read (`--quantization fp8`): float8_e4m3fn and one scale per output channel.

What runs is what a compressed-tensors checkpoint runs. A weight is quantized as soon as its last piece has come, so
that the floats of few weights are in memory at a time.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from remuda.layers.quant.scheme import ExpertWeights, LinearShard, LinearWeights
from remuda.protocol.dtypes import VALUE_BYTES
from remuda.weights.parameter import Parameter

if TYPE_CHECKING:
    import torch

    from remuda.kernels import table
    from remuda.kernels.table import KernelTable, Weighting
    from remuda.layers.expert_shard import ExpertShard


class OnlineFp8:
    inputs_together = 1

    def linear(self, shard: LinearShard, dtype: str) -> LinearWeights:
        return _Linear(shard, dtype)

    def experts(self, shard: ExpertShard, dtype: str) -> ExpertWeights:
        return _Experts(shard, dtype)


class _Quantized(Parameter):
    """Arrives in `dtype`, is kept in float8 with a scale for what shares its inputs."""

    inputs = 1  # the dimension of inputs in [N, K], [E, H, 2I] and [E, I, H]
    _scale: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        values = prod(self.shape)
        return values * VALUE_BYTES["float8_e4m3fn"] + values // self.shape[self.inputs] * VALUE_BYTES["float32"]

    def fill(self, data: torch.Tensor) -> None:
        from remuda.kernels.linear.torch import quantize_channels  # imports torch: only a loader comes here

        weight, self._scale = quantize_channels(data, self.inputs)
        super().fill(weight)

    def take_scale(self) -> torch.Tensor:
        """float32, the shape without the dimension of inputs; once filled."""
        scale, self._scale = self._scale, None
        assert scale is not None, "take_scale() before the weights are loaded, or twice"
        return scale


class _Linear(LinearWeights):
    def __init__(self, shard: LinearShard, dtype: str) -> None:
        self.weight = _Quantized((shard.outputs, shard.inputs), dtype, shard.weight)

    def make(self, kernels: KernelTable, bias_N: torch.Tensor | None, gated: bool) -> table.Linear:
        return kernels.make_linear(self.weight.take(), bias_N, self.weight.take_scale(), gated)


class _Experts(ExpertWeights):
    def __init__(self, shard: ExpertShard, dtype: str) -> None:
        stored = shard.stored()
        self.gate_up = _Quantized(shard.gate_up_shape, dtype, stored.gate_up)
        self.down = _Quantized(shard.down_shape, dtype, stored.down)

    def make(self, kernels: KernelTable, weighting: Weighting) -> table.Experts:
        scales = self.gate_up.take_scale(), self.down.take_scale()
        return kernels.make_experts(self.gate_up.take(), self.down.take(), scales, weighting)
