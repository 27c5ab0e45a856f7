"""Weights in the compute dtype, cast to it while they are read. N outputs of a linear layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remuda.layers.quant.scheme import ExpertWeights, LinearShard, LinearWeights, applied
from remuda.weights.parameter import Parameter

if TYPE_CHECKING:
    import torch

    from remuda.kernels import table
    from remuda.kernels.table import KernelTable, Weighting
    from remuda.layers.expert_shard import ExpertShard


class Unquantized:
    inputs_together = 1

    def linear(self, shard: LinearShard, dtype: str) -> LinearWeights:
        return _Linear(shard, dtype)

    def experts(self, shard: ExpertShard, dtype: str) -> ExpertWeights:
        return _Experts(shard, dtype)


class _Linear(LinearWeights):
    def __init__(self, shard: LinearShard, dtype: str) -> None:
        self.weight = Parameter((shard.outputs, shard.inputs), dtype, shard.weight)

    def make(self, kernels: KernelTable, bias_N: torch.Tensor | None, gated: bool) -> table.Linear:
        return kernels.make_linear(self.weight.take(), bias_N, None, gated)


class _Experts(ExpertWeights):
    def __init__(self, shard: ExpertShard, dtype: str) -> None:
        stored = shard.stored()
        self.gate_up = Parameter(stored.gate_up_shape, dtype, stored.gate_up)
        self.down = Parameter(stored.down_shape, dtype, stored.down)
        self.inputs = stored.inputs

    def make(self, kernels: KernelTable, weighting: Weighting) -> table.Experts:
        gate_up, down = (applied(weight.take(), self.inputs) for weight in (self.gate_up, self.down))
        return kernels.make_experts(gate_up, down, None, weighting)
