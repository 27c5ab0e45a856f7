"""The attention metadata of one step, built once by the worker and read by every layer.

T tokens, S rows (sequences), G KV groups, B blocks of the longest table, P pages, K key/value heads, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(slots=True)
class ForwardBatch:
    """Rows of one micro-batch: first `num_decodes` rows of one query token each, then rows of any length."""

    positions_T: torch.Tensor  # int64
    query_start_S1: torch.Tensor  # int32: row s owns tokens [query_start[s], query_start[s + 1])
    context_S: torch.Tensor  # int32: tokens in the cache after this step
    tables_GSB: torch.Tensor  # int32: page of each block; entries that nobody sees any more are stale and never read
    places_GT: torch.Tensor  # int64: page * block_size + offset, where token t of group g is written
    kv: list[tuple[torch.Tensor, ...]]  # per depth what the spec declares: k, v [P, K, block_size, D]
    max_query: int
    num_decodes: int
    block_size: int
    plans: dict[Any, Any] = field(default_factory=dict)  # what a kernel prepared for this step, by its own key
