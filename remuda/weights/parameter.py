"""A parameter of one rank and its shard rule as data: which region of which checkpoint tensor goes where in it.

The loader reads by this data, memory reports count by it, and nothing else in the project knows how weights are cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from remuda.protocol.dtypes import VALUE_BYTES

if TYPE_CHECKING:
    import torch

Region = tuple[tuple[int, int], ...]  # [start, stop) per dimension


def whole(shape: tuple[int, ...]) -> Region:
    """The region that covers all of `shape`."""
    return tuple((0, size) for size in shape)


def region_shape(region: Region) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in region)


@dataclass(frozen=True)
class Slice:
    """One rectangular piece: `region` of checkpoint tensor `source` fills `into` of the parameter.

    The two have the same shape, but for leading dimensions of size 1 that only `into` has (an expert's place among all
    experts).
    """

    source: str
    shape: tuple[int, ...]  # of the whole source tensor
    region: Region
    into: Region

    def __post_init__(self) -> None:
        piece = region_shape(self.region)
        target = region_shape(self.into)
        assert target[len(target) - len(piece) :] == piece, (self.source, piece, target)
        assert prod(target) == prod(piece), (self.source, piece, target)


class Parameter:
    """A tensor that a layer declares when it is built and that exists from loading until the layer takes it.

    `slices` may be a callable that makes them: an expert stack has tens of thousands, which only a loader needs.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: str, slices: tuple[Slice, ...] | Callable[[], tuple[Slice, ...]]
    ) -> None:
        self.shape = shape
        self.dtype = dtype  # a name of protocol/dtypes.py
        self._slices = slices
        self._data: torch.Tensor | None = None

    @property
    def slices(self) -> tuple[Slice, ...]:
        return self._slices() if callable(self._slices) else self._slices

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * VALUE_BYTES[self.dtype]

    def fill(self, data: torch.Tensor) -> None:
        """Hold a loaded tensor until the layer takes it."""
        self._data = data

    def take(self) -> torch.Tensor:
        """Hand the loaded tensor over; the parameter keeps only its description, so that a repack frees the memory."""
        data, self._data = self._data, None
        assert data is not None, "take() before the weights are loaded, or twice"
        return data
