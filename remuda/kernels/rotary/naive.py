"""Rotary embedding, per-head norm, query temperature and the write into the KV pages, in torch.

T tokens, X = (Q + 2 K) * D, Q query heads and K key/value heads of this rank, D head_dim, P pages, B block_size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from remuda.kernels.batch import BatchView


@dataclass(frozen=True)
class HeadLayout:
    """How the rows of a fused QKV projection divide into heads: Q query heads, K key heads, K value heads."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    interleaved: bool  # rope rotates pairs (2j, 2j + 1); otherwise (j, j + D/2)


def rotate(x_THD: torch.Tensor, cos_sin_TD: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """Rotate float32 heads [T, heads, D] by the step's angles [T, D] (cosines, then sines). Returns a new tensor."""
    cos, sin = cos_sin_TD.unsqueeze(1).chunk(2, dim=-1)
    if interleaved:
        pairs = x_THD.unflatten(-1, (-1, 2))
        a, b = pairs.unbind(-1)
        return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    a, b = x_THD.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def write_kv(
    key_TKD: torch.Tensor, value_TKD: torch.Tensor, batch: BatchView, group: int, k: torch.Tensor, v: torch.Tensor
) -> None:
    """Store one key and value per token into pages k, v [P, K, B, D] at the group's slots."""
    place = batch.plans.get(("slots", group))
    if place is None:
        slots_T = batch.slots_GT[group]
        place = batch.plans["slots", group] = (slots_T // batch.block_size, slots_T % batch.block_size)
    pages_T, offsets_T = place
    k[pages_T, :, offsets_T] = key_TKD
    v[pages_T, :, offsets_T] = value_TKD


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
    """Finish the queries [T, Q, D] and put keys and values into the pages of `group`.

    ``cos_sin_TD`` float32, cosines then sines of the step's positions; None: no rope. ``norm_eps``: weightless RMS norm
    of each query and key head after the rotation. ``temperature_T`` float32 multiplies the queries.
    """
    Q, K, D = layout.num_heads, layout.num_kv_heads, layout.head_dim
    heads = qkv_TX.unflatten(-1, (Q + 2 * K, D))
    query_key, value_TKD = heads[:, : Q + K], heads[:, Q + K :]
    if cos_sin_TD is not None or norm_eps is not None:
        exact = query_key.float()
        if cos_sin_TD is not None:
            exact = rotate(exact, cos_sin_TD, layout.interleaved)
        if norm_eps is not None:
            exact = torch.rms_norm(exact, (D,), None, norm_eps)
        query_key = exact.to(qkv_TX.dtype)
    query_TQD, key_TKD = query_key[:, :Q], query_key[:, Q:]
    if temperature_T is not None:
        query_TQD = (query_TQD * temperature_T.view(-1, 1, 1)).to(qkv_TX.dtype)
    write_kv(key_TKD, value_TKD, batch, group, k, v)
    return query_TQD
