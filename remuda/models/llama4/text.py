"""Llama 4's language model: dense and mixture-of-experts layers, chunked-local and full attention."""

from __future__ import annotations

from remuda.layers.base import BuildContext, Layer
from remuda.layers.mlp import MLP
from remuda.layers.moe import SigmoidMoE
from remuda.models.decoder import Decoder


def feed_forward(context: BuildContext, prefix: str, index: int) -> Layer:
    name = f"{prefix}.feed_forward"
    if context.config.layers[index].moe:
        return SigmoidMoE(context, name)
    return MLP(context, name, context.config.intermediate_size)


class Llama4ForCausalLM(Decoder):
    """The text model alone, as checkpoints without a vision tower store it."""

    def __init__(self, context: BuildContext) -> None:
        super().__init__(context, prefix="model", head="lm_head", feed_forward=feed_forward)
