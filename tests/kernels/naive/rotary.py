"""From a fused QKV projection to queries, keys and values, head by head and pair by pair."""

from __future__ import annotations

import math

import torch

from remuda.kernels.table import HeadLayout, HeadNorm
from tests.kernels.naive.norm import rms_norm


def rotate(head: torch.Tensor, angles: list[float], interleaved: bool) -> torch.Tensor:
    """Turn the pairs of one head [D] by D / 2 angles in radians."""
    turned = head.clone()
    for j, angle in enumerate(angles):
        a, b = (2 * j, 2 * j + 1) if interleaved else (j, j + len(angles))
        pair = complex(head[a], head[b]) * complex(math.cos(angle), math.sin(angle))
        turned[a], turned[b] = pair.real, pair.imag
    return turned


def finish(
    qkv: torch.Tensor,  # [T, X]
    angles: torch.Tensor | None,  # [T, D / 2] radians
    temperature: torch.Tensor | None,  # [T]
    layout: HeadLayout,
    norm: HeadNorm | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries [T, Q, D], keys and values [T, K, D]."""
    Q, K = layout.num_heads, layout.num_kv_heads
    heads = qkv.double().unflatten(-1, (Q + 2 * K, layout.head_dim)).clone()
    for token in range(len(heads)):
        for index in range(Q + K):
            head = heads[token, index]
            if norm is not None and norm.before_rope:
                head = _normed(head, norm, index < Q)
            if angles is not None:
                head = rotate(head, angles[token].tolist(), layout.interleaved)
            if norm is not None and not norm.before_rope:
                head = _normed(head, norm, index < Q)
            if temperature is not None and index < Q:
                head = head * float(temperature[token])
            heads[token, index] = head
    return heads[:, :Q], heads[:, Q : Q + K], heads[:, Q + K :]


def _normed(head: torch.Tensor, norm: HeadNorm, is_query: bool) -> torch.Tensor:
    return rms_norm(head[None], norm.q_weight_D if is_query else norm.k_weight_D, norm.eps)[0]
