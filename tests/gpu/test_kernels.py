"""Triton kernels on a GPU at sizes of real models: the checks of tests/kernels, with and without early launch."""

from __future__ import annotations

import pytest
import torch

from remuda.kernels.select import cuda_table
from remuda.kernels.table import HeadLayout
from tests.kernels.triton_checks import (
    FP8,
    Rows,
    check_angles,
    check_argmax,
    check_attention,
    check_decode_inputs,
    check_embedding,
    check_gemv,
    check_head,
    check_keep_tokens,
    check_norm,
    check_rope,
    check_silu,
)

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
HEADS = [(10, 2, 128), (5, 1, 128), (40, 8, 128), (32, 8, 64), (16, 4, 256)]
MIXED = Rows((1, 8191, 8192, 0, 8193, 500, 0), ((0, 1000), (8000, 400), (16383, 3)))
early = pytest.mark.parametrize("pdl", [False, True])


@early
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(("chunk", "window"), [(None, None), (8192, None), (256, None), (None, 1000)])
def test_attention(
    dtype: torch.dtype, heads: tuple[int, int, int], chunk: int | None, window: int | None, pdl: bool
) -> None:
    check_attention("cuda", dtype, heads, 16, MIXED, chunk, window, pdl=pdl)


@pytest.mark.parametrize("page", [4, 16, 64, 256])
@pytest.mark.parametrize("rows", [1, 33, 200])
def test_decode(page: int, rows: int) -> None:
    contexts = tuple(torch.randint(1, 3000, (rows,)).tolist())
    check_attention("cuda", torch.bfloat16, (10, 2, 128), page, Rows(contexts), 1024)


@pytest.mark.parametrize("context", [1, 8191, 8192, 8193, 9000, 16384, 16385, 24577])
def test_decode_at_the_border_of_a_chunk(context: int) -> None:
    check_attention("cuda", torch.bfloat16, (10, 2, 128), 16, Rows((context,)), 8192)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(("chunk", "window"), [(None, None), (8192, None), (256, None), (None, 1000)])
def test_attention_of_the_table(
    dtype: torch.dtype, heads: tuple[int, int, int], chunk: int | None, window: int | None
) -> None:
    """By FlashAttention 3 where its wheel is installed."""
    attend = cuda_table().attention(HeadLayout(*heads, interleaved=False)).paged_attention
    check_attention("cuda", dtype, heads, 16, Rows((1, 8191, 500), MIXED.prompts), chunk, window, kernel=attend)
    check_attention("cuda", dtype, heads, 16, Rows((), MIXED.prompts), chunk, window, kernel=attend)


@pytest.mark.parametrize("heads", HEADS)
def test_attention_over_float8_pages(heads: tuple[int, int, int]) -> None:
    check_attention("cuda", torch.bfloat16, heads, 16, MIXED, 8192, kv_dtype=FP8)


@early
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("norm", ["none", "after", "before"])
def test_rope(dtype: torch.dtype, interleaved: bool, norm: str, pdl: bool) -> None:
    for rows in (Rows((3, 0, 70)), Rows((5, 9), ((0, 1000),))):
        check_rope("cuda", dtype, (10, 2, 128), 16, rows, interleaved, norm, pdl=pdl)
        check_rope("cuda", dtype, (4, 1, 64), 32, rows, interleaved, norm, rope=False, tuned=True, pdl=pdl)
        check_rope("cuda", dtype, (4, 4, 256), 16, rows, interleaved, norm, kv_dtype=FP8, pdl=pdl)


def test_rope_angles() -> None:
    check_angles("cuda", [*range(100), 8190, 8191, 131071, 1048575], 64)


@early
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [2880, 4096, 5120])
@pytest.mark.parametrize("tokens", [1, 7, 3000])
def test_norm(dtype: torch.dtype, tokens: int, hidden: int, pdl: bool) -> None:
    check_norm("cuda", dtype, tokens, hidden, pdl)


@early
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [896, 2048, 16384])
def test_silu(dtype: torch.dtype, width: int, pdl: bool) -> None:
    check_silu("cuda", dtype, 5, width, pdl)


@early
@pytest.mark.parametrize("fp8", ["none", "weight", "both"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), [(1792, 5120), (5120, 1280), (8192, 5120), (1000, 1000), (16, 5120)])
def test_gemv(outputs: int, inputs: int, gated: bool, fp8: str, pdl: bool) -> None:
    for rows in (1, 3, 8):
        check_gemv("cuda", torch.bfloat16, rows, outputs, inputs, gated, not gated, fp8, pdl)


@early
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "vocab"), [(1, 50512), (128, 202048), (3, 100)])
def test_argmax(dtype: torch.dtype, rows: int, vocab: int, pdl: bool) -> None:
    check_argmax("cuda", dtype, rows, vocab, pdl)


@early
@pytest.mark.parametrize(("rows", "vocab"), [(1, 50512), (8, 202048), (5, 1000)])
def test_head(rows: int, vocab: int, pdl: bool) -> None:
    check_head("cuda", torch.bfloat16, rows, vocab, 5120, pdl)


@early
def test_embedding_and_decode_inputs(pdl: bool) -> None:
    check_embedding("cuda", torch.bfloat16, 130, 5120, pdl)
    check_decode_inputs("cuda", [3, 0, 2, 130], 5000, 16, pdl)
    check_keep_tokens("cuda", 200, pdl)


def test_a_graph_of_decode_attention_follows_contexts_on_the_device() -> None:
    """One captured launch serves whatever lengths the device holds when it is replayed."""
    from remuda.kernels.attention.triton import paged_attention
    from tests.kernels.triton_checks import attend, make_batch, make_pages, tolerable

    batch = make_batch(Rows((9000, 3000, 40)), 16, "cuda")
    k, v = make_pages(batch, 2, 128, torch.bfloat16, "cuda")
    q = torch.randn(3, 10, 128, device="cuda").bfloat16()
    paged_attention(q, k, v, batch, 0, 8192, 0.1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = paged_attention(q, k, v, batch, 0, 8192, 0.1)
    for contexts in ((9000, 3000, 40), (1, 8193, 64), (8192, 0, 8191)):
        batch.context_S.copy_(torch.tensor(contexts))
        q.normal_()
        out.fill_(float("nan"))
        graph.replay()
        tolerable(out, attend(q, k, v, batch, 0, 8192, None, 0.1), 1e-2)
