"""Llama 4's vision tower and projector: image tiles in, rows of the language model's width out.

N tiles, S pixels per side, P patches of a tile (with the class token P + 1), D tower width, A attention heads,
F pixel-shuffle factor, H hidden size of the language model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from remuda.config.model import VisionConfig
from remuda.kernels.rotary import rotate
from remuda.layers.base import BuildContext, Layer
from remuda.layers.linear import ReplicatedLinear
from remuda.weights.parameter import Parameter, Slice, whole

_TILES_AT_ONCE = 8  # bounds the activations of prompts with many tiles


def _parameter(context: BuildContext, name: str, shape: tuple[int, ...]) -> Parameter:
    return Parameter(shape, context.dtype, (Slice(name, shape, whole(shape), whole(shape)),))


class LayerNorm(Layer):
    def __init__(self, context: BuildContext, module: str, size: int, eps: float) -> None:
        self.weight = _parameter(context, f"{module}.weight", (size,))
        self.bias = _parameter(context, f"{module}.bias", (size,))
        self.eps = eps

    def pack(self) -> None:
        self.weight_D, self.bias_D = self.weight.take(), self.bias.take()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.weight_D.shape, self.weight_D, self.bias_D, self.eps)


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

    def __call__(self, x_NPD: torch.Tensor, cos_sin_PD: torch.Tensor) -> torch.Tensor:
        x_NPD = x_NPD + self._attend(self.input_norm(x_NPD), cos_sin_PD)
        return x_NPD + self.fc2(F.gelu(self.fc1(self.post_norm(x_NPD))))

    def _attend(self, x_NPD: torch.Tensor, cos_sin_PD: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(x_NPD).unflatten(-1, (3, self.heads, -1)).unbind(2)
        query, key = (rotate(heads.float(), cos_sin_PD, interleaved=True).to(x_NPD.dtype) for heads in (query, key))
        out_NAPd = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        return self.output(out_NAPd.transpose(1, 2).flatten(2))


class VisionTower(Layer):
    """Weights on every TP rank of the first stage; tiles are dealt to the ranks and their rows gathered."""

    def __init__(self, context: BuildContext) -> None:
        vision = context.config.vision
        assert vision is not None
        self.config, self.comm, self.dtype = vision, context.comm, context.dtype
        width, root = vision.hidden_size, "vision_model"
        self.side = vision.image_size // vision.patch_size
        self.factor = round(1 / vision.pixel_shuffle_ratio)
        patch = vision.num_channels * vision.patch_size**2
        self.patches = ReplicatedLinear(context, [f"{root}.patch_embedding.linear"], patch, width)
        self.class_embedding = _parameter(context, f"{root}.class_embedding", (width,))
        self.positions = _parameter(context, f"{root}.positional_embedding_vlm", (self.side**2 + 1, width))
        self.norm_pre = LayerNorm(context, f"{root}.layernorm_pre", width, vision.norm_eps)
        self.layers = [VisionLayer(context, f"{root}.model.layers.{i}", vision) for i in range(vision.num_layers)]
        self.norm_post = LayerNorm(context, f"{root}.layernorm_post", width, vision.norm_eps)
        adapter, inner, outer = f"{root}.vision_adapter.mlp", vision.projector_input_dim, vision.projector_output_dim
        self.fc1 = ReplicatedLinear(context, [f"{adapter}.fc1"], vision.intermediate_size, inner)
        self.fc2 = ReplicatedLinear(context, [f"{adapter}.fc2"], outer, outer)
        self.project = ReplicatedLinear(
            context, ["multi_modal_projector.linear_1"], vision.output_dim, context.config.hidden_size
        )

    def pack(self) -> None:
        self.class_D, self.positions_PD = self.class_embedding.take(), self.positions.take()
        self.cos_sin_PD = patch_angles(self.config).to(self.class_D.device)

    def __call__(self, tiles_N3SS: torch.Tensor) -> torch.Tensor:
        """uint8 tiles, the same on every rank -> rows [N * tokens_per_tile, H]."""
        count, ranks = len(tiles_N3SS), self.comm.size
        share = -(-count // ranks)
        mine = tiles_N3SS[self.comm.rank * share : (self.comm.rank + 1) * share]
        rows = tiles_N3SS.new_zeros((share, self.config.tokens_per_tile, self.project.outputs), dtype=self.dtype)
        for first in range(0, len(mine), _TILES_AT_ONCE):
            some = mine[first : first + _TILES_AT_ONCE]
            rows[first : first + len(some)] = self._encode(some)
        return self.comm.all_gather(rows).flatten(0, 1)[:count].flatten(0, 1)

    def _encode(self, tiles_N3SS: torch.Tensor) -> torch.Tensor:
        x_NPD = self.patches(self._unfold(_normalize(tiles_N3SS).to(self.dtype)))
        x_NPD = torch.cat((x_NPD, self.class_D.expand(len(x_NPD), 1, -1)), dim=1)
        x_NPD = self.norm_pre(x_NPD + self.positions_PD)
        for layer in self.layers:
            x_NPD = layer(x_NPD, self.cos_sin_PD)
        shuffled = self._pixel_shuffle(self.norm_post(x_NPD)[:, :-1])
        return self.project(F.gelu(self.fc2(F.gelu(self.fc1(shuffled)))))

    def _unfold(self, pixels_N3SS: torch.Tensor) -> torch.Tensor:
        """-> [N, P, channels * patch * patch], patches row by row."""
        patch = self.config.patch_size
        grid = pixels_N3SS.unflatten(3, (self.side, patch)).unflatten(2, (self.side, patch))
        return grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def _pixel_shuffle(self, x_NPD: torch.Tensor) -> torch.Tensor:
        """Each square of F x F patches becomes one row of F * F * D."""
        small = self.side // self.factor
        grid = x_NPD.unflatten(1, (small, self.factor, small, self.factor))
        return grid.transpose(2, 3).flatten(3).flatten(1, 2)


def _normalize(tiles: torch.Tensor) -> torch.Tensor:
    """uint8 -> [-1, 1], rounded to bfloat16 after each operation in any compute dtype: the model was trained so."""
    return ((tiles.to(torch.bfloat16) * (1 / 255)) - 0.5) / 0.5


def patch_angles(vision: VisionConfig) -> torch.Tensor:
    """cos_sin [P + 1, D / A]: half of the pairs turn with the column, half with the row; the class token stays."""
    side = vision.image_size // vision.patch_size
    width = vision.hidden_size // vision.num_heads // 2
    frequency = 1.0 / vision.rope_theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    place = torch.arange(side * side)
    columns, rows = place % side + 1, place // side + 1
    angles = torch.cat((torch.outer(columns.float(), frequency), torch.outer(rows.float(), frequency)), dim=-1)
    angles = F.pad(angles, (0, 0, 0, 1))
    return torch.cat((angles.cos(), angles.sin()), dim=-1)
