"""From a fused QKV projection to finished queries and KV pages."""

from __future__ import annotations

import torch

from remuda.kernels.batch import BatchView
from remuda.kernels.native import runtime
from remuda.kernels.rotary import naive, native
from remuda.kernels.rotary.naive import HeadLayout, rotate

__all__ = ["HeadLayout", "rope_kv", "rotate"]


def rope_kv(
    qkv_TX: torch.Tensor,
    cos_sin_TD: torch.Tensor | None,
    temperature_T: torch.Tensor | None,
    layout: HeadLayout,
    batch: BatchView,
    group: int,
    k: torch.Tensor,
    v: torch.Tensor,
    norm_eps: float | None = None,
) -> torch.Tensor:
    """Finish the queries [T, Q, D] and put keys and values into the pages of `group`. The caller gives up `qkv_TX`.

    ``cos_sin_TD`` float32, cosines then sines of the step's positions; None: no rope. ``norm_eps``: weightless RMS norm
    of each query and key head after the rotation. ``temperature_T`` float32 multiplies the queries.
    """
    kernel = native.rope_kv if runtime.serving and native.serves(qkv_TX, layout.head_dim) else naive.rope_kv
    return kernel(qkv_TX, cos_sin_TD, temperature_T, layout, batch, group, k, v, norm_eps)
