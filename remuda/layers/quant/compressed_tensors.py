"""compressed-tensors float-quantized: float8_e4m3fn weights beside one float32 scale per output channel.

The weights stay float8 in memory: a kernel casts them, exactly, to the compute dtype, and the scale multiplies the
output channel. Experts are always three modules each. N outputs of a linear layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from remuda.layers.expert_shard import ExpertModules
from remuda.layers.quant.scheme import ExpertWeights, LinearShard, LinearWeights, applied
from remuda.weights.parameter import Parameter

if TYPE_CHECKING:
    import torch

    from remuda.kernels import table
    from remuda.kernels.table import KernelTable, Weighting
    from remuda.layers.expert_shard import ExpertShard

_FP8, _SCALE = "float8_e4m3fn", "float32"


class ChannelFp8:
    inputs_together = 1

    def linear(self, shard: LinearShard, dtype: str) -> LinearWeights:
        return _Linear(shard)

    def experts(self, shard: ExpertShard, dtype: str) -> ExpertWeights:
        return _Experts(shard)


class _Linear(LinearWeights):
    def __init__(self, shard: LinearShard) -> None:
        self.weight = Parameter((shard.outputs, shard.inputs), _FP8, shard.weight)
        self.scale = Parameter((shard.outputs, 1), _SCALE, shard.channel_scale)

    def make(self, kernels: KernelTable, bias_N: torch.Tensor | None, gated: bool) -> table.Linear:
        return kernels.make_linear(self.weight.take(), bias_N, self.scale.take().view(-1), gated)


class _Experts(ExpertWeights):
    def __init__(self, shard: ExpertShard) -> None:
        modules = ExpertModules(shard)
        self.gate_up = Parameter(modules.gate_up_shape, _FP8, modules.gate_up)
        self.down = Parameter(modules.down_shape, _FP8, modules.down)
        self.gate_up_scale = Parameter((*modules.gate_up_shape[:2], 1), _SCALE, modules.gate_up_scale)
        self.down_scale = Parameter((*modules.down_shape[:2], 1), _SCALE, modules.down_scale)
        self.inputs = modules.inputs

    def make(self, kernels: KernelTable, weighting: Weighting) -> table.Experts:
        gate_up, down = (applied(weight.take(), self.inputs) for weight in (self.gate_up, self.down))
        scales = self.gate_up_scale.take().squeeze(2), self.down_scale.take().squeeze(2)
        return kernels.make_experts(gate_up, down, scales, weighting)
