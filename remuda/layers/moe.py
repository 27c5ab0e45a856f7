"""Mixture of experts: each rank holds a slice of every expert, or under expert parallelism some experts whole.

T tokens, k choices per token, H hidden.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from remuda.kernels.table import KernelTable
from remuda.layers.base import BuildContext, Layer
from remuda.layers.expert_shard import ExpertShard
from remuda.layers.linear import ReplicatedLinear
from remuda.layers.mlp import MLP
from remuda.weights.parameter import Parameter

if TYPE_CHECKING:
    import torch


class Experts(Layer):
    """The routed experts, from the fused layout or from per-expert float8 modules."""

    def __init__(self, context: BuildContext, prefix: str) -> None:
        shard = self.shard = ExpertShard.of(context, prefix)
        quantized = context.quant.covers(f"{prefix}.0.gate_proj")
        gate_up, down = shard.per_expert() if quantized else shard.fused()
        dtype = context.weight_dtype(quantized)
        self.gate_up = Parameter((shard.count, shard.hidden, 2 * shard.width), dtype, gate_up)
        self.down = Parameter((shard.count, shard.width, shard.hidden), dtype, down)
        self.gate_up_scale = self.down_scale = None
        if quantized:
            gate_up, down = shard.scales()
            self.gate_up_scale = Parameter((shard.count, 2 * shard.width), "float32", gate_up)
            self.down_scale = Parameter((shard.count, shard.hidden), "float32", down)

    def pack(self, kernels: KernelTable) -> None:
        scales = None
        if self.gate_up_scale is not None and self.down_scale is not None:
            scales = (self.gate_up_scale.take(), self.down_scale.take())
        self.experts = kernels.make_experts(self.gate_up.take(), self.down.take(), scales)

    def bind_own(self, kernels: KernelTable) -> None:
        self.experts = kernels.repack_experts(self.experts)

    def __call__(self, x_TH: torch.Tensor, expert_Tk: torch.Tensor, weight_Tk: torch.Tensor) -> torch.Tensor:
        """This rank's part of the sum over each token's choices; `expert_Tk` are ids among all experts."""
        if self.shard.count < self.shard.total:
            local_Tk = expert_Tk - self.shard.owned.start
            expert_Tk = local_Tk.masked_fill_((local_Tk < 0) | (local_Tk >= self.shard.count), -1)
        return self.experts(x_TH, expert_Tk, weight_Tk)


class SigmoidMoE(Layer):
    """Llama 4's block: top-k by logit, sigmoid(logit) on each chosen expert's input, plus the unscaled shared expert.

    The result is this rank's partial sum of routed and shared parts.
    """

    def __init__(self, context: BuildContext, prefix: str) -> None:
        config = context.config.moe
        assert config is not None
        self.top_k = config.top_k
        self.router = ReplicatedLinear(
            context, [f"{prefix}.router"], context.config.hidden_size, config.num_experts, quantizable=False
        )
        self.experts = Experts(context, f"{prefix}.experts")
        self.shared = MLP(context, f"{prefix}.shared_expert", config.shared_intermediate_size)

    def bind_own(self, kernels: KernelTable) -> None:
        self.route_sigmoid = kernels.route_sigmoid

    def __call__(self, x_TH: torch.Tensor) -> torch.Tensor:
        expert_Tk, weight_Tk = self.route_sigmoid(self.router(x_TH), self.top_k)
        return self.experts(x_TH, expert_Tk, weight_Tk).add_(self.shared(x_TH))
