"""Attention over paged keys and values in C, bf16. T tokens, Q query heads, D head_dim."""

from __future__ import annotations

import torch

from remuda.kernels.batch import BatchView
from remuda.kernels.native import kv, runtime


def serves(head_dim: int, window: int | None) -> bool:
    """Whether C has been written for heads of this width, and for no window; asked when a layer is bound."""
    return head_dim % 16 == 0 and head_dim <= 256 and window is None


def paged_attention(
    q_TQD: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    batch: BatchView,
    group: int,
    chunk: int | None,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    assert window is None
    if q_TQD.stride(1) != q_TQD.shape[2] or q_TQD.stride(2) != 1:
        q_TQD = q_TQD.contiguous()
    out_TQD = torch.empty(q_TQD.shape, dtype=torch.bfloat16)
    layer = kv.layer(k, v, q_TQD.shape[1], chunk or 0, scale)
    runtime.library.remuda_attention(
        layer, kv.step(batch, group), q_TQD.data_ptr(), q_TQD.stride(0), out_TQD.data_ptr()
    )
    return out_TQD
