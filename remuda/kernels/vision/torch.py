"""What a vision tower needs beside linear layers and norms, in torch.

n tiles, p patches of a tile, S pixels per side, H tower width, A attention heads, D head_dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from remuda.kernels.rotary.torch import rotate


def patch_rows(tiles_n3SS: torch.Tensor, patch: int) -> torch.Tensor:
    """uint8 tiles -> [n, p, 3 * patch * patch], pixels in [-1, 1], patches row by row.

    bfloat16, rounded after each operation whatever the compute dtype is: the model was trained so.
    """
    pixels = ((tiles_n3SS.to(torch.bfloat16) * (1 / 255)) - 0.5) / 0.5
    grid = pixels.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def embed_patches(rows_npH: torch.Tensor, class_H: torch.Tensor, positions_PH: torch.Tensor) -> torch.Tensor:
    """[n, P = p + 1, H]: the class token behind the patches, positions added."""
    return torch.cat((rows_npH, class_H.expand(len(rows_npH), 1, -1)), dim=1) + positions_PH


def patch_angles(side: int, head_dim: int, theta: float, device: torch.device | str = "cpu") -> torch.Tensor:
    """cos_sin [side * side + 1, D] of a square of patches: half of the pairs turn with the column, half with the row.

    The class token, last, does not turn.
    """
    width = head_dim // 2
    frequency = 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    place = torch.arange(side * side)
    columns, rows = place % side + 1, place // side + 1
    angles = torch.cat((torch.outer(columns.float(), frequency), torch.outer(rows.float(), frequency)), dim=-1)
    angles = F.pad(angles, (0, 0, 0, 1))
    return torch.cat((angles.cos(), angles.sin()), dim=-1).to(device)


def tile_attention(qkv_nPX: torch.Tensor, cos_sin_PD: torch.Tensor, heads: int) -> torch.Tensor:
    """Bidirectional attention among the patches of each tile, with rope: [n, P, 3 * H] -> [n, P, H]."""
    query, key, value = qkv_nPX.unflatten(-1, (3, heads, -1)).unbind(2)
    query, key = (rotate(part.float(), cos_sin_PD, interleaved=True).to(qkv_nPX.dtype) for part in (query, key))
    out_nAPD = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return out_nAPD.transpose(1, 2).flatten(2)
