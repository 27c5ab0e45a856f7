"""What a kernel reads of a step's batch (`remuda.layers.batch.ForwardBatch` is the implementation)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


class BatchView(Protocol):
    """Rows and page tables of one micro-batch. T tokens, S sequences, G KV groups, B blocks of a table."""

    query_start_S1: torch.Tensor  # int32: row s owns tokens [query_start[s], query_start[s + 1])
    context_S: torch.Tensor  # int32: tokens in the cache after this step
    tables_GSB: torch.Tensor  # int32: page of each block; entries that nobody sees any more are stale and never read
    places_GT: torch.Tensor  # int64: page * block_size + offset, where token t of group g is written
    max_query: int  # tokens of the longest row
    num_decodes: int  # the first rows, each with one query token
    block_size: int
    plans: dict[Any, Any]  # what a kernel prepared for this step, by its own key
