"""Random numbers that depend on nothing but (seed, position): batch, layout and preemption cannot change them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def _splitmix64(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The output function of the SplitMix64 generator at state `x`, wrapping in 64 bits."""
    z = x + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def uniform(seeds: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """One number in [0, 1) per pair: 53 random bits."""
    hashed = _splitmix64(_splitmix64(seeds.view(np.uint64)) ^ positions.view(np.uint64) * _GOLDEN)
    return (hashed >> np.uint64(11)).astype(np.float64) * 2.0**-53
