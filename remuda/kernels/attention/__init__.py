"""Attention over paged keys and values."""

from __future__ import annotations

import torch

from remuda.kernels.attention import naive, native
from remuda.kernels.batch import BatchView
from remuda.kernels.native import runtime


def paged_attention(
    q_TQD: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    batch: BatchView,
    group: int,
    chunk: int | None,
    scale: float,
) -> torch.Tensor:
    """Causal attention of every row over its pages k, v [P, K, B, D] -> [T, Q, D].

    With ``chunk`` a query at position p sees only keys of positions p // chunk * chunk ... p.
    """
    kernel = native.paged_attention if runtime.serving and native.serves(q_TQD) else naive.paged_attention
    return kernel(q_TQD, k, v, batch, group, chunk, scale)
