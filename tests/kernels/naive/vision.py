"""What a vision tower does beside linear layers and norms, patch by patch."""

from __future__ import annotations

import math

import torch

from tests.kernels.naive.rotary import rotate


def patch_rows(tiles: torch.Tensor, patch: int) -> torch.Tensor:
    """uint8 [n, 3, S, S] -> [n, p, 3 * patch * patch] in [-1, 1]; values of a patch by channel, row and column."""
    tiles_of = []
    for tile in tiles.double():
        side = tile.shape[1] // patch
        squares = [
            tile[:, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch] for r in range(side) for c in range(side)
        ]
        tiles_of.append(torch.stack([square.reshape(-1) / 127.5 - 1 for square in squares]))
    return torch.stack(tiles_of)


def embed_patches(rows: torch.Tensor, class_token: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.cat([tile, class_token[None]]) + positions for tile in rows])


def patch_angles(side: int, head_dim: int, theta: float) -> list[list[float]]:
    """Radians of the D / 2 pairs of each patch: the first half by its column, the rest by its row; counted from 1."""
    frequencies = [theta ** -(2 * j / (head_dim // 2)) for j in range(head_dim // 4)]
    turned = [
        [(column + 1) * f for f in frequencies] + [(row + 1) * f for f in frequencies]
        for row in range(side)
        for column in range(side)
    ]
    return [*turned, [0.0] * (head_dim // 2)]


def tile_attention(qkv: torch.Tensor, angles: list[list[float]], heads: int) -> torch.Tensor:
    """[n, P, 3 H] -> [n, P, H]: every patch sees every patch of its tile."""
    out = torch.zeros(*qkv.shape[:2], qkv.shape[2] // 3, dtype=torch.float64)
    for tile in range(len(qkv)):
        query, key, value = qkv[tile].double().unflatten(-1, (3, heads, -1)).unbind(1)
        for head in range(heads):
            q, k = (
                torch.stack([rotate(x[p, head], angles[p], True) for p in range(len(angles))]) for x in (query, key)
            )
            width = q.shape[1]
            for patch in range(len(angles)):
                scores = k @ q[patch] / math.sqrt(width)
                out[tile, patch, head * width : (head + 1) * width] = scores.softmax(0) @ value[:, head]
    return out
