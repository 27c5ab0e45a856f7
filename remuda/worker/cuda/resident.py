"""What the device keeps of resident sequences, so that a decode step needs only its slots and positions.

N slots (and one more, of padding rows, whose pages are all the null page), L tokens of a sequence, G KV groups, B
blocks of a table, T tokens and S rows of a step.
"""

from __future__ import annotations

import numpy as np
import torch

from remuda.kernels.table import KernelTable
from remuda.layers.batch import ForwardBatch
from remuda.protocol.step import StepPlan
from remuda.worker.cuda.device import Device
from remuda.worker.cuda.graphs import bucket_of
from remuda.worker.inputs import leading_decodes, token_rows
from remuda.worker.kv_pool import KVPool
from remuda.worker.state import BatchState, Rows


class ResidentBatch:
    """Tokens and page tables. Changes take their place behind the work that the device has been given so far."""

    def __init__(self, device: Device, state: BatchState, pool: KVPool, kernels: KernelTable) -> None:
        groups, slots, blocks = state.tables_GNB.shape
        self.padding_slot = slots
        self._device = device
        self._state = state
        self._pool = pool
        self._kernels = kernels
        where = device.torch_device
        self.tokens_NL = torch.zeros(slots + 1, state.capacity, dtype=torch.int64, device=where)
        self.tables_GNB = torch.zeros(groups, slots + 1, blocks, dtype=torch.int32, device=where)
        self._starts_S1 = torch.arange(bucket_of(slots) + 1, dtype=torch.int32, device=where)  # of one token a row

    # ------------------------------------------------------------------------------------------------ changes

    def admit(self, plan: StepPlan) -> None:
        """Tokens of new sequences."""
        for sequence in plan.new:
            ids = np.array(sequence.token_ids, np.int64)
            self.tokens_NL[sequence.slot, : len(ids)] = self._device.send(ids)

    def grant(self, plan: StepPlan) -> None:
        """Pages of new sequences and grants; the worker's state has applied the plan."""
        slots = [sequence.slot for sequence in plan.new]
        if slots:  # a few whole tables: their stale ends are never read
            tables = self._state.tables_GNB[:, slots]
            self.tables_GNB[:, self._device.send(np.array(slots))] = self._device.send(np.ascontiguousarray(tables))
        if plan.grants:
            self._append(plan)

    def _append(self, plan: StepPlan) -> None:
        blocks = self._state.tables_GNB.shape[2]
        places: list[int] = []
        pages: list[int] = []
        for grant in plan.grants:
            for group, granted in enumerate(grant.pages):
                row = group * (self.padding_slot + 1) + grant.slot
                end = row * blocks + int(self._state.blocks_GN[group, grant.slot])
                places += range(end - len(granted), end)
                pages += granted
        if places:
            both = self._device.send(np.array([places, pages], np.int64))
            self.tables_GNB.view(-1)[both[0]] = both[1].int()

    def keep(self, slots_S: torch.Tensor, positions_S: torch.Tensor, tokens_S: torch.Tensor) -> None:
        """Write sampled tokens; -1 (no finite logits) becomes any token, as the engine ends such a sequence."""
        self.tokens_NL[slots_S, positions_S] = tokens_S.clamp(min=0)

    # ------------------------------------------------------------------------------------------------ a step's inputs

    def decode_batch(self, slots_S: torch.Tensor, positions_S: torch.Tensor) -> ForwardBatch:
        """One token a row, in operations that a graph can hold: nothing here depends on values."""
        size = self._state.block_size
        rows = len(slots_S)
        inputs = self._kernels.decode_inputs(slots_S, positions_S, self.tables_GNB, size)
        return ForwardBatch(
            positions_T=positions_S,
            query_start_S1=self._starts_S1[: rows + 1],
            context_S=inputs.context_S,
            tables_GSB=inputs.tables_GSB,
            places_GT=inputs.places_GS,
            kv=self._pool.kv,
            max_query=1,
            num_decodes=rows,
            block_size=size,
        )

    def mixed_batch(self, rows: Rows) -> tuple[ForwardBatch, torch.Tensor]:
        """Rows of any length, and the slot of each token."""
        size, tokens, count = self._state.block_size, rows.total_tokens, len(rows.slots_S)
        row_T, positions_T = token_rows(rows)
        context_S = rows.starts_S + rows.counts_S
        parts = (positions_T, rows.slots_S[row_T], rows.slots_S, context_S, rows.query_start_S1)
        sent = self._device.send(np.concatenate(parts, dtype=np.int64))
        positions, slot_T, slots_S, context, query_start = sent.split([tokens, tokens, count, count, count + 1])
        blocks = -(-int(context_S.max()) // size)
        page_GT = self.tables_GNB[:, slot_T, positions // size]
        batch = ForwardBatch(
            positions_T=positions,
            query_start_S1=query_start.int(),
            context_S=context.int(),
            tables_GSB=self.tables_GNB[:, slots_S, :blocks],
            places_GT=page_GT.long() * size + positions % size,
            kv=self._pool.kv,
            max_query=rows.max_count,
            num_decodes=leading_decodes(rows),
            block_size=size,
        )
        return batch, slot_T
