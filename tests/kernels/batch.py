"""Batches for kernels: rows of any context and query count over shuffled pages, in two KV groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

GROUPS = 2


@dataclass
class Batch:
    """`remuda.kernels.batch.BatchView`"""

    query_start_S1: torch.Tensor
    context_S: torch.Tensor
    tables_GSB: torch.Tensor
    places_GT: torch.Tensor
    max_query: int
    num_decodes: int
    block_size: int
    pages: int  # page 0 is nobody's
    plans: dict[Any, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return int(self.query_start_S1[-1])


def make_batch(rows: list[tuple[int, int]], block_size: int) -> Batch:
    """Rows of (query tokens, context after it). The table has a spare column, which a kernel never reads."""
    blocks = [-(-context // block_size) for _, context in rows]
    order = torch.randperm(GROUPS * sum(blocks), generator=torch.Generator().manual_seed(0)) + 1
    free = iter(order.tolist())
    tables = torch.zeros(GROUPS, len(rows), max(blocks) + 1, dtype=torch.int32)
    places: list[list[int]] = []
    for group in range(GROUPS):
        places.append([])
        for row, (queries, context) in enumerate(rows):
            own = [next(free) for _ in range(blocks[row])]
            tables[group, row, : len(own)] = torch.tensor(own)
            positions = range(context - queries, context)
            places[group] += [own[p // block_size] * block_size + p % block_size for p in positions]
    counts = [queries for queries, _ in rows]
    return Batch(
        query_start_S1=torch.tensor([0, *counts]).cumsum(0).int(),
        context_S=torch.tensor([context for _, context in rows]).int(),
        tables_GSB=tables,
        places_GT=torch.tensor(places),
        max_query=max(counts),
        num_decodes=next((i for i, count in enumerate(counts) if count > 1), len(counts)),
        block_size=block_size,
        pages=1 + len(order),
    )
