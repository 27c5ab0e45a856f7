"""Attention over pages, query by query: gather what it sees, weigh it by the softmax of the scores."""

from __future__ import annotations

import torch

from remuda.kernels.batch import BatchView


def paged_attention(
    q: torch.Tensor,  # [T, Q, D]
    k: torch.Tensor,  # pages [P, K, B, D]
    v: torch.Tensor,
    batch: BatchView,
    group: int,
    chunk: int | None,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    out = torch.zeros(q.shape, dtype=torch.float64)
    starts, contexts = batch.query_start_S1.tolist(), batch.context_S.tolist()
    for row, context in enumerate(contexts):
        table = batch.tables_GSB[group, row].tolist()
        queries = starts[row + 1] - starts[row]
        for position in range(context - queries, context):
            token = starts[row] + position - (context - queries)
            places = [divmod(seen, batch.block_size) for seen in visible(position, chunk, window)]
            keys, values = (torch.stack([pages[table[b], :, at].double() for b, at in places]) for pages in (k, v))
            for head in range(q.shape[1]):
                shared = head * k.shape[1] // q.shape[1]
                scores = keys[:, shared] @ q[token, head].double() * scale
                out[token, head] = scores.softmax(0) @ values[:, shared]
    return out


def visible(position: int, chunk: int | None, window: int | None) -> range:
    first = 0
    if chunk is not None:
        first = position // chunk * chunk
    if window is not None:
        first = max(first, position - window + 1)
    return range(first, position + 1)
