"""Rotary embedding, per-head norm, query temperature and the write into the KV pages in C, bf16.

T tokens, X = (Q + 2 K) * D, Q query heads and K key/value heads of this rank, D head_dim.
"""

from __future__ import annotations

import torch

from remuda.kernels.batch import BatchView
from remuda.kernels.native import kv, runtime
from remuda.kernels.table import HeadLayout, HeadNorm


def rope_kv(
    qkv_TX: torch.Tensor,
    cos_sin_TD: torch.Tensor | None,
    temperature_T: torch.Tensor | None,
    layout: HeadLayout,
    batch: BatchView,
    group: int,
    k: torch.Tensor,
    v: torch.Tensor,
    norm: HeadNorm | None = None,
) -> torch.Tensor:
    """The queries are finished in place: the result is a view of `qkv_TX`."""
    heads, width = layout.num_heads, layout.head_dim
    layer = kv.layer(k, v, heads, interleaved=layout.interleaved, norm=norm)
    runtime.library.remuda_rope_kv(
        layer, kv.step(batch, group), qkv_TX.data_ptr(), qkv_TX.stride(0),
        None if cos_sin_TD is None else cos_sin_TD.data_ptr(),
        None if temperature_T is None else temperature_T.data_ptr(),
    )  # fmt: skip
    return qkv_TX.as_strided((qkv_TX.shape[0], heads, width), (qkv_TX.stride(0), width, 1))
