"""Sampled tokens on their way back to the first stage.

The engine schedules the next step of a sequence before the last stage has sampled its token. A first-stage rank
posts a receive for every sampling step and waits for it only when the input of a row needs the value.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from remuda.parallel.p2p import PipelineLink
from remuda.worker.state import BatchState, Ints, Rows


@dataclass(slots=True)
class _Expected:
    step: int
    slots: Ints
    positions: Ints
    generations: Ints


class TokenFeedback:
    """First in, first out by step. The order of waits depends on plans only, never on timing."""

    def __init__(self, link: PipelineLink, state: BatchState, max_expected: int) -> None:
        self._link = link
        self._state = state
        self._expected: deque[_Expected] = deque()
        self._max_expected = max_expected

    def expect(self, step: int, slots: Ints, positions: Ints) -> None:
        """The driver will sample one token for each of `slots` in `step`."""
        if not len(slots):
            return
        self._link.post_tokens(len(slots), step)
        self._expected.append(_Expected(step, slots, positions, self._state.generation_N[slots]))
        # No engine runs so far ahead that these could still be missing: their sequences ended, nobody waited for them.
        while len(self._expected) > self._max_expected:
            self._settle_oldest()

    def settle_inputs(self, rows: Rows) -> None:
        """Wait until every token that `rows` reads has its value."""
        needed_S = rows.starts_S + rows.counts_S
        while self._expected and (self._state.settled_N[rows.slots_S] < needed_S).any():
            self._settle_oldest()

    def _settle_oldest(self) -> None:
        oldest = self._expected.popleft()
        tokens = self._link.receive_tokens(oldest.step)
        self._state.settle(oldest.slots, oldest.positions, oldest.generations, tokens.cpu().numpy())
