"""Mixture of experts: each rank holds a slice of every expert, or under expert parallelism some experts whole.

T tokens, k choices per token, E experts of this rank, H hidden, I intermediate size of this rank's part of an expert.
"""

from __future__ import annotations

import torch

from remuda.kernels import moe
from remuda.layers.base import BuildContext, Layer
from remuda.layers.linear import ReplicatedLinear
from remuda.layers.mlp import MLP
from remuda.planner.layout import expert_range
from remuda.weights.parameter import Parameter, Slice


class Experts(Layer):
    """The routed experts, from the fused layout ([E, H, 2I], [E, I, H]) or from per-expert float8 modules."""

    def __init__(self, context: BuildContext, prefix: str) -> None:
        config = context.config.moe
        assert config is not None
        self.context, self.prefix = context, prefix
        self.hidden, self.intermediate, self.total = (
            context.config.hidden_size,
            config.intermediate_size,
            config.num_experts,
        )
        if context.topology.expert_parallel:
            self.owned = expert_range(config.num_experts, context.tp_size, context.tp_rank)
            self.columns = (0, config.intermediate_size)
        else:
            self.owned = range(config.num_experts)
            self.columns = context.cut(config.intermediate_size)
        count, width = len(self.owned), self.columns[1] - self.columns[0]
        quantized = context.quant.covers(f"{prefix}.0.gate_proj")
        gate_up, down = self._per_expert_slices() if quantized else self._fused_slices()
        self.gate_up = Parameter((count, self.hidden, 2 * width), context.dtype, gate_up)
        self.down = Parameter((count, width, self.hidden), context.dtype, down)
        self.gate_up_scale = self.down_scale = None
        if quantized:
            gate_up, down = self._scale_slices()
            self.gate_up_scale = Parameter((count, 2 * width), torch.float32, gate_up)
            self.down_scale = Parameter((count, self.hidden), torch.float32, down)

    def _halves(self) -> tuple[tuple[str, int, tuple[int, int]], ...]:
        """(projection, its first column in the fused tensor, where it goes in this rank's gate_up)."""
        width = self.columns[1] - self.columns[0]
        return ("gate_proj", 0, (0, width)), ("up_proj", self.intermediate, (width, 2 * width))

    def _fused_slices(self) -> tuple[tuple[Slice, ...], tuple[Slice, ...]]:
        H, I = self.hidden, self.intermediate  # noqa: E741
        experts, here, (first, last) = (self.owned.start, self.owned.stop), (0, len(self.owned)), self.columns
        source, shape = f"{self.prefix}.gate_up_proj", (self.total, H, 2 * I)
        if (first, last) == (0, I):
            gate_up = [Slice(source, shape, (experts, (0, H), (0, 2 * I)), (here, (0, H), (0, 2 * I)))]
        else:
            gate_up = [
                Slice(source, shape, (experts, (0, H), (offset + first, offset + last)), (here, (0, H), into))
                for _, offset, into in self._halves()
            ]
        down = Slice(
            f"{self.prefix}.down_proj",
            (self.total, I, H),
            (experts, (first, last), (0, H)),
            (here, (0, last - first), (0, H)),
        )
        return tuple(gate_up), (down,)

    def _per_expert_slices(self) -> tuple[tuple[Slice, ...], tuple[Slice, ...]]:
        H, I, part = self.hidden, self.intermediate, self.columns  # noqa: E741
        gate_up, down = [], []
        for place, expert in enumerate(self.owned):
            here = (place, place + 1)
            for name, _, into in self._halves():
                source = f"{self.prefix}.{expert}.{name}.weight"
                gate_up.append(
                    Slice(source, (I, H), (part, (0, H)), (here, (0, H), into), transpose=True, quantized=True)
                )
            source, into = f"{self.prefix}.{expert}.down_proj.weight", (0, part[1] - part[0])
            down.append(Slice(source, (H, I), ((0, H), part), (here, into, (0, H)), transpose=True, quantized=True))
        return tuple(gate_up), tuple(down)

    def _scale_slices(self) -> tuple[tuple[Slice, ...], tuple[Slice, ...]]:
        H, I = self.hidden, self.intermediate  # noqa: E741
        gate_up, down = [], []
        for place, expert in enumerate(self.owned):
            here = (place, place + 1)
            for name, _, into in self._halves():
                source = f"{self.prefix}.{expert}.{name}.weight_scale"
                gate_up.append(Slice(source, (I, 1), (self.columns, (0, 1)), (here, into), transpose=True))
            source = f"{self.prefix}.{expert}.down_proj.weight_scale"
            down.append(Slice(source, (H, 1), ((0, H), (0, 1)), (here, (0, H)), transpose=True))
        return tuple(gate_up), tuple(down)

    def pack(self) -> None:
        scales = None
        if self.gate_up_scale is not None and self.down_scale is not None:
            scales = (self.gate_up_scale.take(), self.down_scale.take())
        self.experts = moe.PackedExperts(self.gate_up.take(), self.down.take(), scales)

    def adopt_native(self) -> None:
        self.experts.adopt_native()

    def __call__(self, x_TH: torch.Tensor, expert_Tk: torch.Tensor, weight_Tk: torch.Tensor) -> torch.Tensor:
        """This rank's part of the sum over each token's choices; `expert_Tk` are ids among all experts."""
        if len(self.owned) < self.total:
            local_Tk = expert_Tk - self.owned.start
            expert_Tk = local_Tk.masked_fill_((local_Tk < 0) | (local_Tk >= len(self.owned)), -1)
        return self.experts(x_TH, expert_Tk, weight_Tk)


class SigmoidMoE(Layer):
    """Llama 4's block: top-k by logit, sigmoid(logit) on each chosen expert's input, plus the unscaled shared expert.

    One all-reduce adds up routed and shared parts of all ranks.
    """

    def __init__(self, context: BuildContext, prefix: str) -> None:
        config = context.config.moe
        assert config is not None
        self.top_k = config.top_k
        self.router = ReplicatedLinear(
            context, [f"{prefix}.router"], context.config.hidden_size, config.num_experts, quantizable=False
        )
        self.experts = Experts(context, f"{prefix}.experts")
        self.shared = MLP(context, f"{prefix}.shared_expert", config.shared_intermediate_size, reduce=False)
        self.comm = context.comm
        self.reduce = context.tp_size > 1

    def __call__(self, x_TH: torch.Tensor) -> torch.Tensor:
        expert_Tk, weight_Tk = moe.route_sigmoid(self.router(x_TH), self.top_k)
        y_TH = self.experts(x_TH, expert_Tk, weight_Tk).add_(self.shared(x_TH))
        return self.comm.all_reduce_(y_TH) if self.reduce else y_TH
