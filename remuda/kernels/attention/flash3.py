"""Attention of prompts by FlashAttention 3, where its wheel is installed (`remuda[cuda]`): Hopper, 16-bit floats.

Decode rows stay with Triton, which needs less time for a few keys. T tokens, S rows, Q query heads, K key/value heads,
D head_dim, P pages, B page size.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from remuda.kernels.attention.triton import paged_attention as by_triton
from remuda.kernels.batch import BatchView

_MODULE = "flash_attn_interface"
_HEAD_DIMS = (64, 128, 256)
_UNLIMITED = -1


def available() -> bool:
    """Whether the wheel is installed and the current device is one that it is compiled for."""
    if importlib.util.find_spec(_MODULE) is None or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability() == (9, 0)


class FlashAttention:
    """See `PagedAttention` in the kernel table."""

    def __init__(self, pdl: bool) -> None:
        from flash_attn_interface import flash_attn_with_kvcache

        self._flash: Callable[..., Any] = flash_attn_with_kvcache
        self._pdl = pdl

    def __call__(
        self,
        q_TQD: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        batch: BatchView,
        group: int,
        chunk: int | None,
        scale: float,
        window: int | None = None,
    ) -> torch.Tensor:
        decodes, rows = batch.num_decodes, batch.context_S.shape[0]
        if decodes == rows or not serves(q_TQD, k):
            return by_triton(q_TQD, k, v, batch, group, chunk, scale, window, pdl=self._pdl)
        prompts_TQD = self._prompts(q_TQD[decodes:], k, v, batch, group, chunk, scale, window)
        if not decodes:
            return prompts_TQD
        leading = batch.plans.get("flash3 decodes")
        if leading is None:
            leading = batch.plans["flash3 decodes"] = _DecodeRows(batch)
        decoded_TQD = by_triton(q_TQD[:decodes], k, v, leading, group, chunk, scale, window, pdl=self._pdl)
        return torch.cat((decoded_TQD, prompts_TQD))

    def _prompts(
        self, q_TQD: torch.Tensor, k: torch.Tensor, v: torch.Tensor, batch: BatchView, group: int, chunk: int | None,
        scale: float, window: int | None,
    ) -> torch.Tensor:  # fmt: skip
        """Of the rows behind the decodes. Pages are passed as they lie, seen as [P, B, K, D]."""
        first = batch.num_decodes
        start_S1 = batch.plans.get("flash3")
        if start_S1 is None:
            start_S1 = batch.plans["flash3"] = batch.query_start_S1[first:] - first
        return self._flash(
            q_TQD, k.transpose(1, 2), v.transpose(1, 2),
            cache_seqlens=batch.context_S[first:], page_table=batch.tables_GSB[group, first:],
            cu_seqlens_q=start_S1, max_seqlen_q=batch.max_query, softmax_scale=scale, causal=True,
            window_size=(_UNLIMITED, _UNLIMITED) if window is None else (window - 1, 0),
            attention_chunk=chunk or 0,
        )  # fmt: skip


def serves(q_TQD: torch.Tensor, k: torch.Tensor) -> bool:
    return q_TQD.shape[2] in _HEAD_DIMS and q_TQD.dtype in (torch.bfloat16, torch.float16) and k.dtype is q_TQD.dtype


class _DecodeRows:
    """The leading rows of a batch, one query each."""

    def __init__(self, batch: BatchView) -> None:
        count = batch.num_decodes
        self.query_start_S1 = batch.query_start_S1[: count + 1]
        self.context_S = batch.context_S[:count]
        self.tables_GSB = batch.tables_GSB[:, :count]
        self.places_GT = batch.places_GT[:, :count]
        self.max_query, self.num_decodes, self.block_size = 1, count, batch.block_size
        self.plans: dict[Any, Any] = {}
