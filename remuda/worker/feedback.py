"""Sampled tokens on their way back to the first stage.

The engine schedules the next step of a sequence before the last stage has sampled its token. A first-stage rank
posts a receive for every sampling step and waits for it only when the input of a row needs the value.
"""

from __future__ import annotations

from collections import deque

from remuda.parallel.p2p import PipelineLink
from remuda.worker.state import BatchState, Rows


class TokenFeedback:
    """First in, first out by step. The order of waits depends on plans only, never on timing."""

    def __init__(self, link: PipelineLink, state: BatchState, max_expected: int) -> None:
        self._link = link
        self._state = state
        self._expected: deque[tuple[int, Rows]] = deque()  # step, and the rows that sample in it
        self._max_expected = max_expected

    def expect(self, step: int, rows: Rows) -> None:
        """The driver will sample one token for each sampling row of `step`."""
        if not len(rows.sampling_slots):
            return
        self._link.post_tokens(len(rows.sampling_slots), step)
        self._expected.append((step, rows))
        # No engine runs so far ahead that these could still be missing: their sequences ended, nobody waited for them.
        while len(self._expected) > self._max_expected:
            self._settle_oldest()

    def settle_inputs(self, rows: Rows) -> None:
        """Wait until every token that `rows` reads has its value."""
        while self._expected and self._expected[0][0] <= rows.awaited_step:
            self._settle_oldest()

    def _settle_oldest(self) -> None:
        step, rows = self._expected.popleft()
        self._state.settle(rows, self._link.receive_tokens(step))
