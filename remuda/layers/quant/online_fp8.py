"""FP8 made of floats while they are read (`--quantization fp8`): float8_e4m3fn and one scale per output channel.

What runs is what a compressed-tensors checkpoint runs. A weight is quantized as soon as its last piece has come, so
that the floats of few weights are in memory at a time. N outputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING

from remuda.layers.quant.scheme import ExpertWeights, LinearShard, LinearWeights, applied
from remuda.protocol.dtypes import VALUE_BYTES
from remuda.weights.parameter import Parameter, Slice

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

    def __init__(
        self, shape: tuple[int, ...], dtype: str, slices: Callable[[], tuple[Slice, ...]], inputs: int
    ) -> None:
        super().__init__(shape, dtype, slices)
        self.inputs = inputs  # the dimension of inputs
        self._scale: torch.Tensor | None = None

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
        self.weight = _Quantized((shard.outputs, shard.inputs), dtype, shard.weight, inputs=1)

    def make(self, kernels: KernelTable, bias_N: torch.Tensor | None, gated: bool) -> table.Linear:
        return kernels.make_linear(self.weight.take(), bias_N, self.weight.take_scale(), gated)


class _Experts(ExpertWeights):
    def __init__(self, shard: ExpertShard, dtype: str) -> None:
        stored = shard.stored()
        self.gate_up = _Quantized(stored.gate_up_shape, dtype, stored.gate_up, stored.inputs)
        self.down = _Quantized(stored.down_shape, dtype, stored.down, stored.inputs)

    def make(self, kernels: KernelTable, weighting: Weighting) -> table.Experts:
        scales = self.gate_up.take_scale(), self.down.take_scale()
        gate_up, down = (applied(weight.take(), weight.inputs) for weight in (self.gate_up, self.down))
        return kernels.make_experts(gate_up, down, scales, weighting)
