"""Mixture of experts: each rank holds a slice of every expert, or under expert parallelism some experts whole.

T tokens, k choices per token, H hidden.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from remuda.kernels.table import KernelTable, SigmoidMoEParts, Weighting
from remuda.layers.base import BuildContext, Layer
from remuda.layers.expert_shard import PROJECTIONS, ExpertLayout, ExpertModules, ExpertShard, FusedExperts, ModuleNames
from remuda.layers.linear import ReplicatedLinear
from remuda.layers.mlp import MLP
from remuda.layers.quant import UNQUANTIZED, scheme_of

if TYPE_CHECKING:
    import torch


class Experts(Layer):
    """The routed experts of a layer: a slice of each, or some whole.

    ``layout`` says how the architecture's unquantized checkpoints store them, ``weighting`` what a routing weight
    multiplies, ``names`` what the modules of an expert are called.
    """

    part = "routed experts"

    def __init__(
        self,
        context: BuildContext,
        prefix: str,
        layout: ExpertLayout,
        weighting: Weighting,
        names: ModuleNames = PROJECTIONS,
    ) -> None:
        config = context.config.moe
        assert config is not None
        self.used = config.top_k / config.num_experts
        self.shard = ExpertShard.of(context, prefix, layout, names)
        scheme = scheme_of(context.quant, [f"{prefix}.0.{names[0]}"])
        context.check_cut(self.shard.columns, scheme.inputs_together, f"{prefix}.0.{names[-1]}")
        self.weights = scheme.experts(self.shard, context.dtype)
        self.weighting = weighting

    def pack(self, kernels: KernelTable) -> None:
        self.experts = self.weights.make(kernels, self.weighting)

    def bind_own(self, kernels: KernelTable) -> None:
        self.experts = kernels.repack_experts(self.experts)

    def __call__(self, x_TH: torch.Tensor, expert_Tk: torch.Tensor, weight_Tk: torch.Tensor) -> torch.Tensor:
        """This rank's part of the sum over each token's choices; `expert_Tk` are ids among all experts."""
        if self.shard.count < self.shard.total:
            local_Tk = expert_Tk - self.shard.owned.start
            expert_Tk = local_Tk.masked_fill_((local_Tk < 0) | (local_Tk >= self.shard.count), -1)
        return self.experts(x_TH, expert_Tk, weight_Tk)


class Router(ReplicatedLinear):
    """Logits of all experts. Never quantized."""

    part = "routers"

    def __init__(self, context: BuildContext, module: str) -> None:
        moe = context.config.moe
        assert moe is not None
        super().__init__(context, [module], context.config.hidden_size, moe.num_experts, scheme=UNQUANTIZED)


class SharedExpert(MLP):
    """The expert that every token passes through."""

    part = "shared experts"


class SigmoidMoE(Layer):
    """Llama 4's block: top-k by logit, sigmoid(logit) on each chosen expert's input, plus the unscaled shared expert.

    The result is this rank's partial sum of routed and shared parts.
    """

    def __init__(self, context: BuildContext, prefix: str) -> None:
        config = context.config.moe
        assert config is not None
        self.top_k = config.top_k
        self.router = Router(context, f"{prefix}.router")
        self.experts = Experts(context, f"{prefix}.experts", FusedExperts, Weighting.INPUT)
        self.shared = SharedExpert(context, f"{prefix}.shared_expert", config.shared_intermediate_size)

    def bind_own(self, kernels: KernelTable) -> None:
        self.route_sigmoid = kernels.route_sigmoid
        shared, experts = self.shared, self.experts
        first = experts.shard.owned.start
        self.fused = kernels.fuse_sigmoid_moe(
            SigmoidMoEParts(
                self.router.linear, experts.experts, first, shared.gate_up.linear, shared.down.linear, self.top_k
            )
        )

    def __call__(self, x_TH: torch.Tensor) -> torch.Tensor:
        if self.fused is not None:
            return self.fused(x_TH)
        expert_Tk, weight_Tk = self.route_sigmoid(self.router(x_TH), self.top_k)
        return self.experts(x_TH, expert_Tk, weight_Tk).add_(self.shared(x_TH))


class SoftmaxMoE(Layer):
    """Mixtral's and Qwen's block: top-k of the softmax, whose weights multiply the outputs; no shared expert.

    The result is this rank's partial sum.
    """

    def __init__(self, context: BuildContext, prefix: str, names: ModuleNames = PROJECTIONS) -> None:
        config = context.config.moe
        assert config is not None
        self.top_k, self.renormalize = config.top_k, config.renormalize
        self.router = Router(context, f"{prefix}.gate")
        self.experts = Experts(context, f"{prefix}.experts", ExpertModules, Weighting.OUTPUT, names)

    def bind_own(self, kernels: KernelTable) -> None:
        self.route_softmax = kernels.route_softmax

    def __call__(self, x_TH: torch.Tensor) -> torch.Tensor:
        expert_Tk, weight_Tk = self.route_softmax(self.router(x_TH), self.top_k, self.renormalize)
        return self.experts(x_TH, expert_Tk, weight_Tk)
