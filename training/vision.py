"""The vision tower and projector, with the published parameter names.

N tiles, P patches of a tile, V tower width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.architecture import VISION

WIDTH, HEADS, SIDE = VISION["hidden_size"], VISION["num_attention_heads"], VISION["image_size"] // VISION["patch_size"]
HEAD = WIDTH // HEADS


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """The layer with its float32 master weights rounded to the input's type."""
    return F.linear(x, layer.weight.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))


def layer_norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    return F.layer_norm(x.float(), layer.normalized_shape, layer.weight, layer.bias, layer.eps).to(x.dtype)


def patch_rotations() -> Tensor:
    """complex64 [P + 1, HEAD / 2]: columns turn the first half of the pairs, rows the second; the class token stays."""
    frequency = 1.0 / VISION["rope_theta"] ** (torch.arange(0, HEAD // 2, 2).float() / (HEAD // 2))
    index = torch.arange(SIDE * SIDE)
    angles = torch.cat([(index % SIDE + 1)[:, None] * frequency, (index // SIDE + 1)[:, None] * frequency], dim=1)
    return torch.cat([angles, torch.zeros(1, HEAD // 2)])


class TowerAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x_NPV: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (linear(x_NPV, p).unflatten(-1, (HEADS, HEAD)) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate_pairs(q, cos, sin), rotate_pairs(k, cos, sin)
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return linear(out.transpose(1, 2).flatten(2), self.o_proj)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate adjacent pairs of the last dimension in float32; cos and sin broadcast against [..., D / 2]."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)


class TowerMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, VISION["intermediate_size"])
        self.fc2 = nn.Linear(VISION["intermediate_size"], WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return linear(F.gelu(linear(x, self.fc1)), self.fc2)


class TowerLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = TowerAttention()
        self.mlp = TowerMLP()
        self.input_layernorm = nn.LayerNorm(WIDTH, eps=VISION["norm_eps"])
        self.post_attention_layernorm = nn.LayerNorm(WIDTH, eps=VISION["norm_eps"])

    def forward(self, x_NPV: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x_NPV = x_NPV + self.self_attn(layer_norm(x_NPV, self.input_layernorm), cos, sin)
        return x_NPV + self.mlp(layer_norm(x_NPV, self.post_attention_layernorm))


class AdapterMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(VISION["intermediate_size"], VISION["projector_input_dim"], bias=False)
        self.fc2 = nn.Linear(VISION["projector_output_dim"], VISION["projector_output_dim"], bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(linear(F.gelu(linear(x, self.fc1)), self.fc2))


class Adapter(nn.Module):
    """2 x 2 patches become one row."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = AdapterMLP()

    def forward(self, x_NPV: Tensor) -> Tensor:
        x = x_NPV.unflatten(1, (SIDE // 2, 2, SIDE // 2, 2)).permute(0, 1, 3, 2, 4, 5)
        rows: Tensor = self.mlp(x.flatten(3).flatten(1, 2))
        return rows


class PatchEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(VISION["num_channels"] * VISION["patch_size"] ** 2, WIDTH, bias=False)


class TowerLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TowerLayer() for _ in range(VISION["num_hidden_layers"]))


class VisionTower(nn.Module):
    cos: Tensor
    sin: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(WIDTH) * 0.1)
        self.positional_embedding_vlm = nn.Parameter(torch.randn(SIDE * SIDE + 1, WIDTH) * 0.3)
        self.patch_embedding = PatchEmbedding()
        self.layernorm_pre = nn.LayerNorm(WIDTH, eps=VISION["norm_eps"])
        self.layernorm_post = nn.LayerNorm(WIDTH, eps=VISION["norm_eps"])
        self.model = TowerLayers()
        self.vision_adapter = Adapter()
        angles = patch_rotations()
        self.register_buffer("cos", angles.cos()[:, None], persistent=False)
        self.register_buffer("sin", angles.sin()[:, None], persistent=False)

    def forward(self, tiles_N3SS: Tensor, dtype: torch.dtype) -> Tensor:
        """uint8 tiles -> [N, P / 4, projector width]. Pixels are normalised in bfloat16, as the processor does."""
        pixels = (tiles_N3SS.to(torch.bfloat16) * (1 / 255) - 0.5) / 0.5
        patches = (
            pixels.unflatten(3, (SIDE, -1)).unflatten(2, (SIDE, -1)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        )
        x = linear(patches.to(dtype), self.patch_embedding.linear)
        x = torch.cat([x, self.class_embedding.to(dtype).expand(x.shape[0], 1, -1)], dim=1)
        x = layer_norm(x + self.positional_embedding_vlm.to(dtype), self.layernorm_pre)
        for layer in self.model.layers:
            x = layer(x, self.cos, self.sin)
        return self.vision_adapter(layer_norm(x, self.layernorm_post)[:, :-1])
