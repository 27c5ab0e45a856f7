"""Qwen3: Llama's decoder with a norm of every query and key head."""

from __future__ import annotations

from remuda.layers.attention import NormedHeadsAttention
from remuda.layers.base import BuildContext, Layer
from remuda.models.decoder import Decoder


class Qwen3ForCausalLM(Decoder):
    def make_attention(self, context: BuildContext, prefix: str, index: int, place: tuple[int, int]) -> Layer:
        return NormedHeadsAttention(context, prefix, index, *place)
