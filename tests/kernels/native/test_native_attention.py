"""rope_kv and paged attention at all shapes against torch's, which is held to naive loops at small ones."""

from __future__ import annotations

import pytest
import torch

from remuda.kernels.attention import native as attention
from remuda.kernels.attention import torch as torch_attention
from remuda.kernels.rotary import native as rotary
from remuda.kernels.rotary import torch as torch_rotary
from remuda.kernels.select import native_table
from remuda.kernels.table import HeadLayout, HeadNorm
from tests.kernels.batch import make_batch


def check_attention(
    rows: list[tuple[int, int]], heads: int, kv_heads: int, head_dim: int, block_size: int, chunk: int | None
) -> None:
    batch = make_batch(rows, block_size)
    k, v = (torch.randn(batch.pages, kv_heads, block_size, head_dim).bfloat16() for _ in range(2))
    tokens = batch.tokens
    q = torch.randn(tokens, heads + 2, head_dim).bfloat16()[:, :heads]  # strided, as in a fused projection
    scale = head_dim**-0.5
    exact = torch_attention.paged_attention(q.float(), k.float(), v.float(), batch, 1, chunk, scale)
    actual = attention.paged_attention(q, k, v, batch, 1, chunk, scale)
    torch.testing.assert_close(actual.float(), exact, rtol=2e-2, atol=1.2e-2)
    assert torch.equal(actual, attention.paged_attention(q, k, v, batch, 1, chunk, scale))


@pytest.mark.parametrize("block_size", [8, 16, 32])
@pytest.mark.parametrize("chunk", [None, 40, 64, 256])
@pytest.mark.parametrize(
    "rows",
    [
        [(1, 1)],
        [(1, 5000)],
        [(1, 63), (1, 64), (1, 65), (1, 129), (1, 300)],
        [(1, 40), (1, 41), (7, 7), (33, 90), (130, 700), (2, 2)],
        [(300, 300)],
    ],
    ids=["first", "long", "decodes", "mixed", "prompt"],
)
def test_attention_over_contexts(rows: list[tuple[int, int]], chunk: int | None, block_size: int) -> None:
    check_attention(rows, heads=8, kv_heads=2, head_dim=32, block_size=block_size, chunk=chunk)


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (5, 1), (16, 1), (12, 4), (40, 2)])
@pytest.mark.parametrize("head_dim", [16, 48, 64, 128, 256])
def test_attention_over_heads(heads: int, kv_heads: int, head_dim: int) -> None:
    check_attention([(1, 130), (1, 17), (50, 77)], heads, kv_heads, head_dim, block_size=16, chunk=None)


def test_pages_past_the_context_are_never_read_into_the_result() -> None:
    batch = make_batch([(1, 21), (30, 53)], 16)
    k, v = (torch.randn(batch.pages, 2, 16, 32).bfloat16() for _ in range(2))
    q = torch.randn(31, 4, 32).bfloat16()
    clean = attention.paged_attention(q, k, v, batch, 0, None, 0.2)
    for row, context in enumerate((21, 53)):
        page = int(batch.tables_GSB[0, row, context // 16])
        k[page, :, context % 16 :], v[page, :, context % 16 :] = float("nan"), float("nan")
    assert torch.equal(attention.paged_attention(q, k, v, batch, 0, None, 0.2), clean)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(
    ("rope", "norm", "tuned"),
    [
        (True, "none", False),
        (True, "after rope", False),
        (True, "before rope, weights", False),
        (True, "after rope, weights", True),
        (False, "none", True),
    ],
)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(8, 2, 32), (3, 1, 16), (4, 4, 128)])
def test_rope_kv(
    heads: int, kv_heads: int, head_dim: int, interleaved: bool, rope: bool, norm: str, tuned: bool
) -> None:
    batch = make_batch([(1, 20), (1, 33), (45, 60)], 16)
    tokens = batch.tokens
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim).bfloat16()
    angles = torch.rand(tokens, head_dim // 2) * 6
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1) if rope else None
    temperature = torch.rand(tokens) + 1 if tuned else None
    layout = HeadLayout(heads, kv_heads, head_dim, interleaved)
    weights = [torch.rand(head_dim).bfloat16() + 0.5 for _ in "qk"] if "weights" in norm else [None, None]
    head_norm = None if norm == "none" else HeadNorm(1e-5, "before" in norm, *weights)
    results = []
    for kernel in (rotary.rope_kv, torch_rotary.rope_kv):
        k, v = (torch.zeros(batch.pages, kv_heads, 16, head_dim).bfloat16() for _ in range(2))
        q = kernel(qkv.clone(), cos_sin, temperature, layout, batch, 1, k, v, head_norm)
        results.append((q, k, v))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-2)


def test_windows_are_left_to_torch() -> None:
    layout = HeadLayout(4, 2, 64, interleaved=False)
    assert native_table().attention(layout).paged_attention is attention.paged_attention
    assert native_table().attention(layout, window=8).paged_attention is torch_attention.paged_attention
