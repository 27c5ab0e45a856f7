"""Causal attention over documents packed one behind the other: flash kernels on CUDA, a dense mask on CPU.

T tokens, Q query heads, K key/value heads, D head size. Spans are given by their borders: [0, end of span 0, ...]
int32. A chunked layer passes the borders of the chunks, a full one those of the documents; nothing else differs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class _FlashAttention(torch.autograd.Function):
    """The variable-length flash kernel with its own backward, so that nothing depends on a wrapper's signature."""

    @staticmethod
    def forward(ctx: Any, q_TQD: Tensor, k_TKD: Tensor, v_TKD: Tensor, borders: Tensor, longest: int) -> Tensor:
        out, lse, seed, unused, _ = torch.ops.aten._flash_attention_forward(
            q_TQD, k_TKD, v_TKD, borders, borders, longest, longest, 0.0, True, False
        )
        ctx.save_for_backward(q_TQD, k_TKD, v_TKD, out, lse, borders, seed, unused)
        ctx.longest = longest
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_TQD, k_TKD, v_TKD, out, lse, borders, seed, unused = ctx.saved_tensors
        dq, dk, dv = torch.ops.aten._flash_attention_backward(
            grads[0].contiguous(),
            q_TQD,
            k_TKD,
            v_TKD,
            out,
            lse,
            borders,
            borders,
            ctx.longest,
            ctx.longest,
            0.0,
            True,
            seed,
            unused,
        )
        return dq, dk, dv, None, None


def span_attention(q_TQD: Tensor, k_TKD: Tensor, v_TKD: Tensor, borders: Tensor, longest: int) -> Tensor:
    """[T, Q, D]: each token attends to the earlier tokens (and itself) of its own span."""
    groups = q_TQD.shape[1] // k_TKD.shape[1]
    k_TQD, v_TQD = k_TKD.repeat_interleave(groups, 1), v_TKD.repeat_interleave(groups, 1)
    if q_TQD.is_cuda:
        return _FlashAttention.apply(q_TQD, k_TQD, v_TQD, borders, longest)
    tokens = torch.arange(q_TQD.shape[0])
    span_T = torch.bucketize(tokens, borders[1:].long(), right=True)
    mask_TT = (span_T[:, None] == span_T) & (tokens[:, None] >= tokens)
    q, k, v = (x.transpose(0, 1)[None] for x in (q_TQD, k_TQD, v_TQD))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_TT)
    return out[0].transpose(0, 1)
