"""Mixtral: Llama's decoder with a mixture of experts in every layer."""

from __future__ import annotations

from remuda.layers.base import BuildContext, Layer
from remuda.layers.moe import SoftmaxMoE
from remuda.models.decoder import Decoder


class MixtralForCausalLM(Decoder):
    def make_feed_forward(self, context: BuildContext, prefix: str, index: int) -> Layer:
        return SoftmaxMoE(context, f"{prefix}.block_sparse_moe", names=("w1", "w3", "w2"))
