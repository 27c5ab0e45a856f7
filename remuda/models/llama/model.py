"""Llama 2 and 3.x: dense, full attention, half-rotation rope."""

from __future__ import annotations

from remuda.layers.base import BuildContext, Layer
from remuda.layers.mlp import MLP
from remuda.models.decoder import Decoder


class LlamaForCausalLM(Decoder):
    def __init__(self, context: BuildContext) -> None:
        super().__init__(context, prefix="model", head="lm_head", feed_forward=_feed_forward)


def _feed_forward(context: BuildContext, prefix: str, index: int) -> Layer:
    return MLP(context, f"{prefix}.mlp", context.config.intermediate_size)
