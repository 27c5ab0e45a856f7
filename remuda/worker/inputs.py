"""Step plan and resident state to the attention metadata, built on the host once per step.

T tokens, S rows, G KV groups, B blocks of the longest row.
"""

from __future__ import annotations

import numpy as np
import torch

from remuda.layers.batch import ForwardBatch
from remuda.worker.kv_pool import KVPool
from remuda.worker.state import BatchState, Ints, Rows


def token_rows(rows: Rows) -> tuple[Ints, Ints]:
    """(row of each token, position of each token), both [T]."""
    row_T = np.arange(len(rows.slots_S))
    if rows.max_count == 1:
        return row_T, rows.starts_S
    row_T = np.repeat(row_T, rows.counts_S)
    shift_S = rows.starts_S - rows.query_start_S1[:-1]
    return row_T, np.arange(rows.total_tokens) + shift_S[row_T]


def build_batch(state: BatchState, rows: Rows, row_T: Ints, positions_T: Ints, pool: KVPool) -> ForwardBatch:
    """The metadata that every layer of this stage reads."""
    context_S = (rows.starts_S + rows.counts_S).astype(np.int32)
    blocks = -(-int(context_S.max()) // state.block_size)
    tables_GSB = state.tables_GNB[:, rows.slots_S, :blocks]
    block_T, offset_T = np.divmod(positions_T, state.block_size)
    places_GT = tables_GSB[:, row_T, block_T].astype(np.int64) * state.block_size + offset_T
    return ForwardBatch(
        positions_T=_tensor(positions_T),
        query_start_S1=_tensor(rows.query_start_S1),
        context_S=_tensor(context_S),
        tables_GSB=_tensor(tables_GSB),
        places_GT=_tensor(places_GT),
        kv=pool.kv,
        max_query=rows.max_count,
        num_decodes=leading_decodes(rows),
        block_size=state.block_size,
    )


def leading_decodes(rows: Rows) -> int:
    """How many of the first rows have one token."""
    if rows.max_count == 1:
        return len(rows.counts_S)
    return int(np.argmax(rows.counts_S != 1))


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
