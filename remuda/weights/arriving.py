"""Parameters while their pieces come in: what is read for each, and where it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch

from remuda.weights.checkpoint import StoredTensor
from remuda.weights.parameter import Parameter, Region, Slice, region_shape

Filled = Callable[[Parameter], None]  # called once a parameter holds its tensor


class Arriving:
    """A parameter whose tensor is made when its first piece needs it, and handed over with its last."""

    def __init__(self, parameter: Parameter, slices: tuple[Slice, ...], device: torch.device | str) -> None:
        self._parameter = parameter
        self._device = device
        self._missing = len(slices)
        covered = sum(prod(region_shape(piece.into)) for piece in slices)
        self._padded = covered < prod(parameter.shape)
        self._tensor: torch.Tensor | None = None

    @property
    def tensor(self) -> torch.Tensor:
        """Zeros where no slice writes."""
        if self._tensor is None:
            make = torch.zeros if self._padded else torch.empty
            dtype = getattr(torch, self._parameter.dtype)
            self._tensor = make(self._parameter.shape, dtype=dtype, device=self._device)
        return self._tensor

    def count_in(self, filled: Filled, pieces: int = 1) -> None:
        """So many pieces have come; with the last one, or if there are none, the parameter is filled."""
        self._missing -= pieces
        if not self._missing:
            self._parameter.fill(self.tensor)
            self._tensor = None
            filled(self._parameter)


@dataclass(frozen=True)
class Read:
    """A region of a stored tensor and where it goes."""

    tensor: StoredTensor
    piece: Slice
    arriving: Arriving

    @property
    def nbytes(self) -> int:
        return prod(region_shape(self.piece.region)) * self.tensor.dtype.itemsize

    def target(self, block: Region | None = None) -> torch.Tensor:
        """The place of a part of the region (default: of all of it), in the region's shape."""
        piece = self.piece
        target = self.arriving.tensor[tuple(slice(start, stop) for start, stop in piece.into)]
        lead = target.dim() - len(piece.region)
        target = target.view(target.shape[lead:]) if lead else target
        if block is None:
            return target
        return target[tuple(slice(b0 - r0, b1 - r0) for (b0, b1), (r0, _) in zip(block, piece.region, strict=True))]
