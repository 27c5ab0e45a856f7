"""Sampled tokens on their way back to the first stage.

The engine schedules the next step of a sequence before the last stage has sampled its token. A first-stage rank expects
the tokens of every step that samples, and takes them in only when the input of a row needs them.
"""

from __future__ import annotations

from collections import deque

from remuda.worker.state import Rows


class TokenFeedback:
    """First in, first out by step. What is taken in when depends on plans only, never on timing."""

    def __init__(self, max_expected: int) -> None:
        self._expected: deque[tuple[int, Rows]] = deque()  # step, and the rows that sample in it
        self._max_expected = max_expected

    def expect(self, step: int, rows: Rows) -> bool:
        """The driver will send what `step` chooses: after drafts too, right or wrong, because its size must be known
        before. False if it is nothing."""
        if not len(rows.chosen_slots_C):
            return False
        self._expected.append((step, rows))
        return True

    def due(self, rows: Rows) -> list[tuple[int, Rows]]:
        """Steps whose tokens are to be taken in, in this order, before `rows` can run."""
        # No engine runs so far ahead that more could still be missing: their sequences ended, nobody waits for them.
        found = []
        while self._expected and (
            self._expected[0][0] <= rows.awaited_step or len(self._expected) > self._max_expected
        ):
            found.append(self._expected.popleft())
        return found
