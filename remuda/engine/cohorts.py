"""Decoding sequences, dealt to as many cohorts as the pipeline has stages so that every micro-batch is equally long."""

from __future__ import annotations

from bisect import insort
from operator import attrgetter

from remuda.engine.sequence import Sequence

_order = attrgetter("order")


class DecodeCohorts:
    """Cohorts take turns, one per micro-batch, so a sequence's last token has left the pipeline when its turn comes.

    Sizes differ by at most one after each cohort has had a turn: newcomers join the smallest, and a cohort that holds
    more than its share gives the latest arrivals away when its turn comes (they then wait a little longer, once;
    moving them at any other time would make a stage wait for a token that is still on its way).
    """

    def __init__(self, count: int) -> None:
        self._members: list[list[Sequence]] = [[] for _ in range(count)]  # by order; may hold sequences that left
        self._stale = [False] * count
        self._sizes = [0] * count
        self._turn = 0

    def __len__(self) -> int:
        return sum(self._sizes)

    def join(self, seq: Sequence) -> None:
        """Enter the smallest cohort; among equals the one whose turn is farthest away."""
        count, sizes, turn = len(self._sizes), self._sizes, self._turn
        cohort = 0 if count == 1 else min(range(count), key=lambda c: (sizes[c], -((c - turn) % count)))
        insort(self._clean(cohort), seq, key=_order)
        sizes[cohort] += 1
        seq.cohort = cohort

    def leave(self, seq: Sequence) -> None:
        self._sizes[seq.cohort] -= 1
        self._stale[seq.cohort] = True
        seq.cohort = -1

    def turns(self) -> list[int]:
        """Cohorts that have members, in the order in which they are due."""
        count = len(self._sizes)
        return [c % count for c in range(self._turn, self._turn + count) if self._sizes[c % count]]

    def members(self, cohort: int) -> list[Sequence]:
        """Who runs when `cohort` has its turn, first come first; never more than ceil(decoding / cohorts)."""
        share = -(-len(self) // len(self._sizes))
        members = self._clean(cohort)
        if len(members) > share:
            excess = members[share:]
            for seq in excess:
                self.leave(seq)
            for seq in excess:
                self.join(seq)
            members = self._clean(cohort)
        return members

    def pass_turn(self, cohort: int) -> None:
        """`cohort` has run: it is now the last to be due."""
        self._turn = (cohort + 1) % len(self._sizes)

    def _clean(self, cohort: int) -> list[Sequence]:
        if self._stale[cohort]:
            self._members[cohort] = [seq for seq in self._members[cohort] if seq.cohort == cohort]
            self._stale[cohort] = False
        return self._members[cohort]
