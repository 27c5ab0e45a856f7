"""Prompts by FlashAttention 3, a stand-in of whose entry point reads what it is given as the wheel documents it."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.kernels import interpreter  # noqa: F401
from tests.kernels.triton_checks import TOLERANCE, Rows, attend, make_batch, make_pages, tolerable


def flash_attn_with_kvcache(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, *, cache_seqlens: torch.Tensor,
    page_table: torch.Tensor, cu_seqlens_q: torch.Tensor, max_seqlen_q: int, softmax_scale: float, causal: bool,
    window_size: tuple[int, int], attention_chunk: int,
) -> torch.Tensor:  # fmt: skip
    """Pages are [P, page size, K, D]; keys are those of cache_seqlens, the queries the last of them."""
    counts = cu_seqlens_q.diff()
    assert causal and cu_seqlens_q[0] == 0 and cu_seqlens_q.is_contiguous() and max_seqlen_q >= counts.max()
    assert k_cache.stride(-1) == v_cache.stride(-1) == page_table.stride(-1) == 1
    assert all(x.dtype is torch.int32 for x in (cache_seqlens, page_table, cu_seqlens_q))
    batch = SimpleNamespace(
        query_start_S1=cu_seqlens_q, context_S=cache_seqlens, tables_GSB=page_table[None], block_size=k_cache.shape[1]
    )
    assert window_size == (-1, -1) or window_size[1] == 0
    window = None if window_size[0] < 0 else window_size[0] + 1
    k, v = k_cache.transpose(1, 2), v_cache.transpose(1, 2)
    return attend(q, k, v, batch, 0, attention_chunk or None, window, softmax_scale).to(q.dtype)  # type: ignore[arg-type]


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> Any:
    wheel = SimpleNamespace(flash_attn_with_kvcache=flash_attn_with_kvcache)
    monkeypatch.setitem(sys.modules, "flash_attn_interface", wheel)  # type: ignore[arg-type]
    from remuda.kernels.attention.flash3 import FlashAttention

    return FlashAttention(pdl=False)


@pytest.mark.parametrize("rows", [Rows((), ((0, 40), (61, 9))), Rows((70, 3), ((0, 5), (30, 12))), Rows((70, 3))])
@pytest.mark.parametrize(("chunk", "window"), [(None, None), (32, None), (None, 19)])
def test_mixed_rows(flash: Any, rows: Rows, chunk: int | None, window: int | None) -> None:
    batch = make_batch(rows, 16, "cpu")
    k, v = make_pages(batch, 2, 64, torch.bfloat16, "cpu")
    q_TQD = torch.randn(int(batch.query_start_S1[-1]), 4, 64).bfloat16()
    for _ in range(2):  # what it keeps for a step serves the next layer, too
        out = flash(q_TQD, k, v, batch, 1, chunk, 0.125, window)
        tolerable(out, attend(q_TQD, k, v, batch, 1, chunk, window, 0.125), TOLERANCE[torch.bfloat16])
