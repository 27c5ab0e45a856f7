"""A parameter of one rank and its shard rule as data: which region of which checkpoint tensor goes where in it.

The loader reads by this data, memory reports count by it, and nothing else in the project knows how weights are cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

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

    After an optional swap of the source's last two dimensions, the two have the same shape, but for leading dimensions
    of size 1 that only `into` has (an expert's place among all experts).
    """

    source: str
    shape: tuple[int, ...]  # of the whole source tensor
    region: Region
    into: Region
    transpose: bool = False
    quantized: bool = False  # the source is float8; otherwise it must not be

    def __post_init__(self) -> None:
        piece = region_shape(self.region)
        piece = (*piece[:-2], piece[-1], piece[-2]) if self.transpose else piece
        target = region_shape(self.into)
        assert target[len(target) - len(piece) :] == piece, (self.source, piece, target)
        assert prod(target) == prod(piece), (self.source, piece, target)


class Parameter:
    """A tensor that a layer declares when it is built and that exists from loading until the layer takes it."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, slices: tuple[Slice, ...]) -> None:
        self.shape = shape
        self.dtype = dtype
        self.slices = slices
        self._data: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def allocate(self, device: torch.device) -> torch.Tensor:
        """Make the tensor: zeros where no slice writes (padding)."""
        covered = sum(prod(region_shape(piece.into)) for piece in self.slices)
        make = torch.empty if covered == prod(self.shape) else torch.zeros
        self._data = make(self.shape, dtype=self.dtype, device=device)
        return self._data

    def take(self) -> torch.Tensor:
        """Hand the loaded tensor over; the parameter keeps only its description, so that a repack frees the memory."""
        data, self._data = self._data, None
        assert data is not None, "take() before the weights are loaded, or twice"
        return data
