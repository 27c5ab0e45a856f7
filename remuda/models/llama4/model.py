"""Llama 4 with its vision tower, which lives on every TP rank of the first stage."""

from __future__ import annotations

import torch

from remuda.layers.base import BuildContext
from remuda.models.decoder import Decoder
from remuda.models.interfaces import SupportsImages
from remuda.models.llama4.text import feed_forward
from remuda.models.llama4.vision import VisionTower


class Llama4ForConditionalGeneration(Decoder, SupportsImages):
    def __init__(self, context: BuildContext) -> None:
        super().__init__(context, "language_model.model", "language_model.lm_head", feed_forward)
        if context.topology.is_first_stage:
            self.vision = VisionTower(context)

    def encode_images(self, tiles_N3SS: torch.Tensor) -> torch.Tensor:
        return self.vision(tiles_N3SS)
