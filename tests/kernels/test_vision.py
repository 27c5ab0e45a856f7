"""The vision tower's operations against naive loops."""

from __future__ import annotations

import torch

from tests.kernels.conftest import Served, normal
from tests.kernels.naive import vision as naive


def test_patches_row_by_row(served: Served) -> None:
    tiles = torch.randint(0, 256, (2, 3, 6, 6), dtype=torch.uint8)
    got = served.kernels.patch_rows(tiles, 2)
    assert got.dtype is torch.bfloat16  # in every compute dtype: what the model was trained on
    torch.testing.assert_close(got.double(), naive.patch_rows(tiles, 2), rtol=0, atol=1.5e-2)


def test_the_class_token_comes_last(served: Served) -> None:
    rows, class_token, positions = normal(2, 4, 6), normal(6, seed=1), normal(5, 6, seed=2)
    got = served.kernels.embed_patches(*(x.to(served.dtype) for x in (rows, class_token, positions)))
    served.close(got, naive.embed_patches(rows, class_token, positions).double())


def test_attention_within_tiles(served: Served) -> None:
    side, heads, width = 3, 2, 8
    qkv = normal(2, side * side + 1, 3 * heads * width)
    cos_sin = served.kernels.patch_angles(side, width, 10000.0, "cpu")
    angles = naive.patch_angles(side, width, 10000.0)
    torch.testing.assert_close(cos_sin[:, : width // 2].double(), torch.tensor(angles).double().cos())
    got = served.kernels.tile_attention(qkv.to(served.dtype), cos_sin, heads)
    served.close(got, naive.tile_attention(qkv, angles, heads))
