"""The resident batch: what every rank remembers about every sequence, so that a step plan is only a diff.

Plain numpy on the host, indexed by slot; what the tokens are is the runner's business. N slots, G KV groups, B blocks,
S rows of a step, C tokens that it chooses (see `drafts.py`; without drafts, one for each row that samples).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from remuda.protocol.step import NewSequence, StepPlan
from remuda.worker.drafts import Drafts, Ints, spread

NO_STEP = -(1 << 62)  # before any other
_GROWTH = 64  # tokens that a sequence may run past max_model_len before the engine, a few steps late, stops it


@dataclass(slots=True)
class Rows:
    """The rows of one step, as arrays over S."""

    slots_S: Ints
    counts_S: Ints
    starts_S: Ints  # tokens computed before the step
    samples_S: npt.NDArray[np.bool_]  # rows that choose a token
    query_start_S1: npt.NDArray[np.int32]
    chosen_slots_C: Ints  # whose the chosen tokens are
    chosen_positions_C: Ints  # where they go, if they stand
    chosen_generations_C: Ints  # of their slots
    drafts: Drafts | None  # None: no row has any
    admissions: int  # to any slot, before the step: while there are no more, no slot has been reused
    awaited_step: int  # the last one that sampled a token which these rows read
    total_tokens: int
    max_count: int

    def chosen_at_C(self) -> Ints:
        """Of the step's tokens, those behind which a token is chosen."""
        last_S = self.query_start_S1[1:][self.samples_S].astype(np.int64) - 1
        if self.drafts is None:
            return last_S
        return spread(last_S - self.drafts.counts_S, self.drafts.counts_S + 1)


class BatchState:
    """Applies plans in the order of the contract (`protocol/step.py`).

    `known` counts every known token of a sequence, also sampled ones: their values come to be on a device, and arrive
    on the first stage later still; a row that reads one needs the step that sampled it (`Rows.awaited_step`).
    """

    def __init__(self, slots: int, max_tokens: int, groups: int, block_size: int) -> None:
        self.slots = slots
        self.capacity = max_tokens + _GROWTH  # tokens of a sequence
        blocks = -(-self.capacity // block_size) + 1
        self.block_size = block_size
        self.tables_GNB = np.zeros((groups, slots, blocks), np.int32)
        self.blocks_GN = np.zeros((groups, slots), np.int64)  # length of each table
        self.known_N = np.zeros(slots, np.int64)
        self.sampled_in_N = np.full(slots, NO_STEP)  # the step that sampled the last known token
        self.computed_N = np.zeros(slots, np.int64)
        self.prompt_N = np.zeros(slots, np.int64)
        self.admissions = 0
        self.generation_N = np.zeros(slots, np.int64)  # bumped when a slot is reused: tokens on their way are then void

    def apply(self, plan: StepPlan) -> None:
        """Released slots, new sequences, page grants, rejected drafts. (A released slot needs nothing until it is
        reused.)"""
        for sequence in plan.new:
            self._admit(sequence)
        for grant in plan.grants:
            for group, pages in enumerate(grant.pages):
                if pages:
                    self._append_pages(group, grant.slot, pages)
        for slot, count in plan.rejected:
            self.known_N[slot] -= count
            self.computed_N[slot] -= count

    def _admit(self, sequence: NewSequence) -> None:
        slot, length = sequence.slot, len(sequence.token_ids)
        self.known_N[slot] = length
        self.sampled_in_N[slot] = NO_STEP
        self.computed_N[slot] = sequence.computed
        self.prompt_N[slot] = sequence.prompt_len
        self.admissions += 1
        self.generation_N[slot] += 1
        self.blocks_GN[:, slot] = 0
        for group, pages in enumerate(sequence.pages):
            self._append_pages(group, slot, pages)

    def _append_pages(self, group: int, slot: int, pages: list[int]) -> None:
        start = self.blocks_GN[group, slot]
        end = start + len(pages)
        self.tables_GNB[group, slot, start:end] = pages
        self.blocks_GN[group, slot] = end

    def rows(self, plan: StepPlan) -> Rows:
        """What `plan` runs. Call after `apply`."""
        slots_S = np.array(plan.slots, np.int64)
        counts_S = np.array(plan.counts, np.int64)
        starts_S = self.computed_N[slots_S]
        known_S = self.known_N[slots_S]
        drafts: Drafts | None = None
        if plan.drafts:
            drafted_S = np.array([len(tokens) for tokens in plan.drafts], np.int64)
            samples_S = starts_S + counts_S == known_S + drafted_S
            drafts = Drafts.of(plan.drafts, samples_S, slots_S[samples_S], known_S[samples_S])
            each_C = drafts.counts_S + 1
            chosen_slots = np.repeat(slots_S[samples_S], each_C)
            chosen_positions = spread(known_S[samples_S], each_C)
        else:
            samples_S = starts_S + counts_S == known_S
            chosen_slots, chosen_positions = slots_S[samples_S], known_S[samples_S]
        query_start_S1 = np.zeros(len(slots_S) + 1, np.int32)
        np.cumsum(counts_S, out=query_start_S1[1:])
        return Rows(
            slots_S=slots_S,
            counts_S=counts_S,
            starts_S=starts_S,
            samples_S=samples_S,
            query_start_S1=query_start_S1,
            chosen_slots_C=chosen_slots,
            chosen_positions_C=chosen_positions,
            chosen_generations_C=self.generation_N[chosen_slots],
            drafts=drafts,
            admissions=self.admissions,
            awaited_step=int(self.sampled_in_N[slots_S].max()),
            total_tokens=int(query_start_S1[-1]),
            max_count=max(plan.counts, default=0),
        )

    def advance(self, rows: Rows, step: int) -> None:
        """Count the step as done, and what it chooses as known, as if all drafts were right."""
        self.computed_N[rows.slots_S] += rows.counts_S
        # The last of a row's positions wins; they rise.
        self.known_N[rows.chosen_slots_C] = rows.chosen_positions_C + 1
        self.sampled_in_N[rows.chosen_slots_C] = step

    def still_theirs(self, rows: Rows) -> npt.NDArray[np.bool_] | None:
        """Which chosen tokens' sequences still own their slots (what is chosen for others is void); None: all."""
        if rows.admissions == self.admissions:
            return None
        return self.generation_N[rows.chosen_slots_C] == rows.chosen_generations_C
