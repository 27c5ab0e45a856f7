"""Llama 2 and 3.x: dense, full attention, half-rotation rope."""

from __future__ import annotations

from remuda.models.decoder import Decoder


class LlamaForCausalLM(Decoder):
    """What a decoder is unless said otherwise."""
