"""Llama 4's vision tower and projector: image tiles in, rows of the language model's width out.

N tiles, S pixels per side, P patches of a tile (with the class token P + 1), D tower width, A attention heads,
F pixel-shuffle factor, H hidden size of the language model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from remuda.config.model import VisionConfig
from remuda.kernels.table import KernelTable
from remuda.layers.base import BuildContext, Layer
from remuda.layers.linear import ReplicatedLinear
from remuda.layers.norm import LayerNorm, replicated

if TYPE_CHECKING:
    import torch

_TILES_AT_ONCE = 8  # bounds the activations of prompts with many tiles


class VisionLayer(Layer):
    """Bidirectional attention among the patches of one tile, then a GELU MLP."""

    def __init__(self, context: BuildContext, prefix: str, vision: VisionConfig) -> None:
        width, inner = vision.hidden_size, vision.intermediate_size
        self.heads = vision.num_heads
        self.input_norm = LayerNorm(context, f"{prefix}.input_layernorm", width, vision.norm_eps)
        names = [f"{prefix}.self_attn.{name}_proj" for name in "qkv"]
        self.qkv = ReplicatedLinear(context, names, width, width, bias=True)
        self.output = ReplicatedLinear(context, [f"{prefix}.self_attn.o_proj"], width, width, bias=True)
        self.post_norm = LayerNorm(context, f"{prefix}.post_attention_layernorm", width, vision.norm_eps)
        self.fc1 = ReplicatedLinear(context, [f"{prefix}.mlp.fc1"], width, inner, bias=True)
        self.fc2 = ReplicatedLinear(context, [f"{prefix}.mlp.fc2"], inner, width, bias=True)

    def bind_own(self, kernels: KernelTable) -> None:
        self.tile_attention, self.gelu = kernels.tile_attention, kernels.gelu

    def __call__(self, x_NPD: torch.Tensor, cos_sin_PD: torch.Tensor) -> torch.Tensor:
        qkv_NPX = self.qkv(self.input_norm(x_NPD))
        x_NPD = x_NPD + self.output(self.tile_attention(qkv_NPX, cos_sin_PD, self.heads))
        return x_NPD + self.fc2(self.gelu(self.fc1(self.post_norm(x_NPD))))


class VisionTower(Layer):
    """Weights on every TP rank of the first stage; tiles are dealt to the ranks and their rows gathered."""

    part = "vision tower"
    used = 0.0

    def __init__(self, context: BuildContext) -> None:
        vision = context.config.vision
        assert vision is not None
        self.config, self.comm, self.device = vision, context.comm, context.device
        width, root = vision.hidden_size, "vision_model"
        self.side = vision.image_size // vision.patch_size
        self.factor = round(1 / vision.pixel_shuffle_ratio)
        patch = vision.num_channels * vision.patch_size**2
        self.patches = ReplicatedLinear(context, [f"{root}.patch_embedding.linear"], patch, width)
        self.class_embedding = replicated(context, f"{root}.class_embedding", (width,))
        self.positions = replicated(context, f"{root}.positional_embedding_vlm", (self.side**2 + 1, width))
        self.norm_pre = LayerNorm(context, f"{root}.layernorm_pre", width, vision.norm_eps)
        self.layers = [VisionLayer(context, f"{root}.model.layers.{i}", vision) for i in range(vision.num_layers)]
        self.norm_post = LayerNorm(context, f"{root}.layernorm_post", width, vision.norm_eps)
        adapter, inner, outer = f"{root}.vision_adapter.mlp", vision.projector_input_dim, vision.projector_output_dim
        self.fc1 = ReplicatedLinear(context, [f"{adapter}.fc1"], vision.intermediate_size, inner)
        self.fc2 = ReplicatedLinear(context, [f"{adapter}.fc2"], outer, outer)
        self.project = ReplicatedLinear(
            context, ["multi_modal_projector.linear_1"], vision.output_dim, context.config.hidden_size
        )

    def pack(self, kernels: KernelTable) -> None:
        self.class_D, self.positions_PD = self.class_embedding.take(), self.positions.take()

    def bind_own(self, kernels: KernelTable) -> None:
        self.patch_rows, self.embed_patches, self.gelu = kernels.patch_rows, kernels.embed_patches, kernels.gelu
        vision = self.config
        head_dim = vision.hidden_size // vision.num_heads
        self.cos_sin_PD = kernels.patch_angles(self.side, head_dim, vision.rope_theta, self.device)

    def __call__(self, tiles_N3SS: torch.Tensor) -> torch.Tensor:
        """uint8 tiles, the same on every rank -> rows [N * tokens_per_tile, H]."""
        count, ranks = len(tiles_N3SS), self.comm.size
        share = -(-count // ranks)
        mine = tiles_N3SS[self.comm.rank * share : (self.comm.rank + 1) * share]
        rows = self.class_D.new_zeros((share, self.config.tokens_per_tile, self.project.outputs))
        for first in range(0, len(mine), _TILES_AT_ONCE):
            some = mine[first : first + _TILES_AT_ONCE]
            rows[first : first + len(some)] = self._encode(some)
        return self.comm.all_gather(rows).flatten(0, 1)[:count].flatten(0, 1)

    def _encode(self, tiles_N3SS: torch.Tensor) -> torch.Tensor:
        pixels_NPX = self.patch_rows(tiles_N3SS.to(self.class_D.device), self.config.patch_size)
        x_NPD = self.patches(pixels_NPX.to(self.class_D.dtype))
        x_NPD = self.norm_pre(self.embed_patches(x_NPD, self.class_D, self.positions_PD))
        for layer in self.layers:
            x_NPD = layer(x_NPD, self.cos_sin_PD)
        shuffled = self._pixel_shuffle(self.norm_post(x_NPD)[:, :-1])
        return self.project(self.gelu(self.fc2(self.gelu(self.fc1(shuffled)))))

    def _pixel_shuffle(self, x_NPD: torch.Tensor) -> torch.Tensor:
        """Each square of F x F patches becomes one row of F * F * D."""
        small = self.side // self.factor
        grid = x_NPD.unflatten(1, (small, self.factor, small, self.factor))
        return grid.transpose(2, 3).flatten(3).flatten(1, 2)
