"""Qwen3-MoE: Qwen3 with experts in the layers that the config says."""

from __future__ import annotations

from remuda.layers.base import BuildContext, Layer
from remuda.layers.moe import SoftmaxMoE
from remuda.models.qwen3.model import Qwen3ForCausalLM


class Qwen3MoeForCausalLM(Qwen3ForCausalLM):
    def make_feed_forward(self, context: BuildContext, prefix: str, index: int) -> Layer:
        if context.config.layers[index].moe:
            return SoftmaxMoE(context, f"{prefix}.mlp")
        return super().make_feed_forward(context, prefix, index)
