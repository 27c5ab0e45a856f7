"""A scheduler for tests: random but legal plans, made without looking at any sampled token."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from remuda.protocol.sampling import SamplingParams
from remuda.protocol.step import NewSequence, PageGrant, StepPlan


@dataclass
class Planned:
    """A sequence as the test's scheduler knows it. `tokens` is filled from results, by whoever runs the plans."""

    slot: int
    tokens: list[int]
    prompt_len: int
    sampling: SamplingParams
    known: int
    computed: int = 0
    pages: list[list[int]] = field(default_factory=list)


class RandomPlanner:
    """`next_plan` returns a plan and the sequences of its sampling rows, in row order."""

    def __init__(self, seed: int, slots: int, groups: int, block_size: int, pages: int, max_len: int) -> None:
        self._random = random.Random(seed)
        self._slots: list[Planned | None] = [None] * slots
        self._groups, self._block, self._max_len = groups, block_size, max_len
        self._free = list(range(1, pages))
        self._random.shuffle(self._free)
        self._step = 0
        self.vocab_size = 50

    def next_plan(self) -> tuple[StepPlan, list[Planned]]:
        rng = self._random
        released, new, grants = [], [], []
        for slot, sequence in enumerate(self._slots):
            if sequence is not None and (rng.random() < 0.05 or sequence.known >= self._max_len):
                self._release(slot)
                released.append(slot)
        for slot, sequence in enumerate(self._slots):
            if sequence is None and rng.random() < 0.4:
                new.append(self._admit(slot))
        admitted = {sequence.slot for sequence in new}
        rows = [s for s in self._slots if s is not None and rng.random() < 0.8]
        rng.shuffle(rows)
        counts = []
        for row in rows:
            left = row.known - row.computed
            counts.append(left if rng.random() < 0.4 else rng.randint(1, left))
            grown = self._grow(row, row.computed + counts[-1])
            if any(grown):
                if row.slot in admitted:
                    index = next(i for i, sequence in enumerate(new) if sequence.slot == row.slot)
                    old = new[index]
                    new[index] = NewSequence(old.slot, old.token_ids, old.prompt_len, 0, grown, old.sampling)
                else:
                    grants.append(PageGrant(row.slot, grown))
        sampling = []
        for row, count in zip(rows, counts, strict=True):
            row.computed += count
            if row.computed == row.known:
                row.known += 1
                sampling.append(row)
        plan = StepPlan(self._step, [row.slot for row in rows], counts, released, new, grants)
        self._step += 1
        return plan, sampling

    def _admit(self, slot: int) -> NewSequence:
        rng = self._random
        prompt = [rng.randrange(self.vocab_size) for _ in range(rng.randint(1, 25))]
        sampling = SamplingParams(temperature=0.0)
        pages: list[list[int]] = [[] for _ in range(self._groups)]
        self._slots[slot] = Planned(slot, list(prompt), len(prompt), sampling, len(prompt), pages=pages)
        return NewSequence(slot, prompt, len(prompt), 0, [[] for _ in range(self._groups)], sampling)

    def _grow(self, sequence: Planned, end: int) -> list[list[int]]:
        grown = []
        for table in sequence.pages:
            need = -(-end // self._block) - len(table)
            grown.append([self._free.pop() for _ in range(max(0, need))])
            table += grown[-1]
        return grown

    def _release(self, slot: int) -> None:
        sequence = self._slots[slot]
        assert sequence is not None
        for table in sequence.pages:
            self._free[:0] = table
        self._slots[slot] = None
