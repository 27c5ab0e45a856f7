"""Drafts of one step, as the ranks see them: what is run, and what of it was right.

D drafts of the step, S sampling rows, C tokens chosen: after the last known token of each sampling row and after each
of its drafts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Drafts:
    """Tokens that run as if they were known, in the order of rows."""

    counts_S: Ints  # of each sampling row
    slots_D: Ints
    positions_D: Ints  # where they stand in their sequence
    tokens_D: Ints

    @classmethod
    def of(cls, drafts: list[list[int]], samples: npt.NDArray[np.bool_], slots_S: Ints, known_S: Ints) -> Drafts:
        """`drafts` and `samples` have every row of the step; slots and known counts are of those that sample."""
        of_sampling = [tokens for tokens, samples in zip(drafts, samples, strict=True) if samples]
        counts_S = np.array([len(tokens) for tokens in of_sampling], np.int64)
        tokens_D = np.array([token for tokens in of_sampling for token in tokens], np.int64)
        return cls(counts_S, np.repeat(slots_S, counts_S), spread(known_S, counts_S), tokens_D)

    def verify(self, chosen_C: Ints) -> tuple[list[int], list[int]]:
        """(places in `chosen_C` of the tokens that stand, how many they are in each sampling row)."""
        chosen, drafted = chosen_C.tolist(), self.tokens_D.tolist()
        places: list[int] = []
        runs: list[int] = []
        place = draft = 0
        for count in self.counts_S.tolist():
            right = 0
            while right < count and chosen[place + right] == drafted[draft + right]:
                right += 1
            places += range(place, place + right + 1)
            runs.append(right + 1)
            place += count + 1
            draft += count
        return places, runs


def spread(firsts_S: Ints, counts_S: Ints) -> Ints:
    """first, first + 1, ... for each row, `counts_S` of them."""
    starts_S = np.cumsum(counts_S) - counts_S
    return np.repeat(firsts_S - starts_S, counts_S) + np.arange(int(counts_S.sum()))
