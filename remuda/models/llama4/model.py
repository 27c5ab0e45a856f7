"""Llama 4: dense and mixture-of-experts layers, chunked-local and full attention; with its vision tower or without.

N tiles with S pixels a side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from remuda.layers.base import BuildContext, Layer
from remuda.layers.mlp import MLP
from remuda.layers.moe import SigmoidMoE
from remuda.models.decoder import Decoder
from remuda.models.interfaces import SupportsImages
from remuda.models.llama4.vision import VisionTower

if TYPE_CHECKING:
    import torch


class Llama4ForCausalLM(Decoder):
    """The text model alone, as checkpoints without a vision tower store it."""

    def make_feed_forward(self, context: BuildContext, prefix: str, index: int) -> Layer:
        module = f"{prefix}.feed_forward"
        if context.config.layers[index].moe:
            return SigmoidMoE(context, module)
        return MLP(context, module, context.config.intermediate_size)


class Llama4ForConditionalGeneration(Llama4ForCausalLM, SupportsImages):
    """With the vision tower, which lives on every TP rank of the first stage."""

    module = "language_model.model"
    head_module = "language_model.lm_head"

    def __init__(self, context: BuildContext) -> None:
        super().__init__(context)
        if context.topology.is_first_stage:
            self.vision = VisionTower(context)

    def encode_images(self, tiles_N3SS: torch.Tensor) -> torch.Tensor:
        return self.vision(tiles_N3SS)
