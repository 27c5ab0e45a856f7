"""Attention over paged keys and values in torch: a batched gather for decode rows, one SDPA per span of a prompt.

T tokens, S rows, Q query heads, K key/value heads, D head_dim, P pages, B block_size, N blocks read, L = N * B.
Pages must hold finite numbers wherever a table points, also where no token has been written yet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from remuda.kernels.batch import BatchView


@dataclass(frozen=True)
class DecodePlan:
    pages_SN: torch.Tensor  # int64
    mask_S11L: torch.Tensor | None  # additive, in the compute dtype


@dataclass(frozen=True)
class SpanPlan:
    """Query tokens of one row and the keys that any of them sees: a whole row, or its part within one chunk."""

    first: int  # tokens [first, last) of the batch
    last: int
    pages_N: torch.Tensor  # int64
    skip: int  # keys [skip, skip + length) of the gathered pages
    length: int
    mask_11TL: torch.Tensor | None  # additive; None where `causal` says it all
    causal: bool


@dataclass(frozen=True)
class AttentionPlan:
    decode: DecodePlan | None
    spans: list[SpanPlan]


def _additive(keep: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(keep.shape, dtype=dtype, device=keep.device).masked_fill_(~keep, float("-inf"))


def _plan_decodes(
    batch: BatchView, table_SB: torch.Tensor, chunk: int | None, window: int | None, dtype: torch.dtype
) -> DecodePlan:
    block = batch.block_size
    context_S = batch.context_S[: batch.num_decodes].long()
    if chunk is not None:
        start_S = (context_S - 1) // chunk * chunk
    else:
        start_S = torch.zeros_like(context_S) if window is None else (context_S - window).clamp_(min=0)
    first_S = start_S // block
    blocks = int(((context_S - 1) // block - first_S).max()) + 1
    columns_SN = first_S[:, None] + torch.arange(blocks, device=context_S.device)
    pages_SN = table_SB.gather(1, columns_SN.clamp(max=table_SB.shape[1] - 1)).long()
    offsets = torch.arange(blocks * block, device=context_S.device)
    position_SL = (first_S * block)[:, None] + offsets
    keep_SL = (position_SL >= start_S[:, None]) & (position_SL < context_S[:, None])
    return DecodePlan(pages_SN, _additive(keep_SL, dtype)[:, None, None])


def _plan_spans(
    batch: BatchView, table_SB: torch.Tensor, chunk: int | None, window: int | None, dtype: torch.dtype
) -> list[SpanPlan]:
    starts, block = batch.query_start_S1.tolist(), batch.block_size
    spans = []
    for row, context in enumerate(batch.context_S.tolist()):
        if row < batch.num_decodes:
            continue
        token, last = starts[row], starts[row + 1]
        position = context - (last - token)
        while token < last:
            begin, end = 0, context
            if chunk is not None:
                begin = position // chunk * chunk
                end = min(context, begin + chunk)
            elif window is not None:
                begin = max(0, position - window + 1)
            count, length = end - position, end - begin
            pages_N = table_SB[row, begin // block : (end - 1) // block + 1].long()
            banded = window is not None and window < length
            causal = 1 < count == length and not banded
            mask = None
            if count > 1 and not causal:
                mask = _additive(_sees(count, length, window if banded else None, pages_N.device), dtype)[None, None]
            spans.append(SpanPlan(token, token + count, pages_N, begin % block, length, mask, causal))
            token, position = token + count, end
    return spans


def _sees(count: int, length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Which of `length` keys each of the last `count` positions among them sees, [T, L]."""
    query_T1 = torch.arange(length - count, length, device=device)[:, None]
    key_L = torch.arange(length, device=device)
    sees_TL = query_T1 >= key_L
    return sees_TL if window is None else sees_TL & (key_L > query_T1 - window)


def _plan(batch: BatchView, group: int, chunk: int | None, window: int | None, dtype: torch.dtype) -> AttentionPlan:
    """Built by the first layer of a group in a step, shared by the others."""
    key = ("attention", group, chunk, window)
    plan = batch.plans.get(key)
    if plan is None:
        table_SB = batch.tables_GSB[group]
        decodes = batch.num_decodes
        decode = _plan_decodes(batch, table_SB[:decodes], chunk, window, dtype) if decodes else None
        plan = batch.plans[key] = AttentionPlan(decode, _plan_spans(batch, table_SB, chunk, window, dtype))
    return plan


def _gather(pages: torch.Tensor, index_SN: torch.Tensor) -> torch.Tensor:
    """pages [P, K, B, D] at index [S, N] -> [S, K, N * B, D]."""
    return pages[index_SN].transpose(1, 2).flatten(2, 3)


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
    """Causal attention of every row over its pages k, v [P, K, B, D] -> [T, Q, D].

    With ``chunk`` a query at position p sees only keys of positions p // chunk * chunk ... p, with ``window`` only
    those of positions p - window + 1 ... p.
    """
    plan = _plan(batch, group, chunk, window, q_TQD.dtype)
    Q, D = q_TQD.shape[1:]
    K = k.shape[1]
    out_TQD = torch.empty_like(q_TQD, memory_format=torch.contiguous_format)
    if plan.decode is not None:
        S, pages_SN = batch.num_decodes, plan.decode.pages_SN
        # The Q / K queries of one key head take the place of a query sequence: no key is repeated.
        query = q_TQD[:S].unflatten(1, (K, Q // K))
        decoded = F.scaled_dot_product_attention(
            query, _gather(k, pages_SN), _gather(v, pages_SN), attn_mask=plan.decode.mask_S11L, scale=scale
        )
        out_TQD[:S] = decoded.reshape(S, Q, D)
    for span in plan.spans:
        keys, values = (
            _gather(pages, span.pages_N[None])[:, :, span.skip : span.skip + span.length] for pages in (k, v)
        )
        query = q_TQD[span.first : span.last].transpose(0, 1)[None]
        attended = F.scaled_dot_product_attention(
            query, keys, values, attn_mask=span.mask_11TL, is_causal=span.causal, scale=scale, enable_gqa=Q != K
        )
        out_TQD[span.first : span.last] = attended[0].transpose(0, 1)
    return out_TQD
