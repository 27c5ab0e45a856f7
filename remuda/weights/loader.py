"""Fill a model's parameters from a checkpoint: each rank its own bytes, once, in file order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from remuda.protocol.dtypes import CONVERTIBLE
from remuda.protocol.errors import CheckpointError
from remuda.weights.checkpoint import Checkpoint, StoredTensor
from remuda.weights.parameter import Parameter, Slice, region_shape
from remuda.weights.reader import read_region

Progress = Callable[[int, int], None]  # (bytes done, bytes in all)


@dataclass(frozen=True)
class LoadReport:
    checkpoint_bytes_read: int  # tensor data only; headers are extra
    weight_bytes: int  # what the parameters take in memory


@dataclass(frozen=True)
class _Read:
    tensor: StoredTensor
    piece: Slice
    parameter: int  # index
    nbytes: int


def load_parameters(
    parameters: Iterable[Parameter],
    directory: str | Path,
    device: torch.device | str,
    progress: Progress | None = None,
) -> LoadReport:
    """Allocate and fill every parameter. Raises CheckpointError naming file, tensor and expectation.

    All tensors are looked up before the first byte is read, so a checkpoint that does not fit fails at once. `progress`
    is called about a hundred times and once at the end.
    """
    parameters = list(parameters)
    with Checkpoint(directory) as checkpoint:
        slices = [parameter.slices for parameter in parameters]
        reads = sorted(_plan(checkpoint, parameters, slices), key=lambda read: (read.tensor.file, read.tensor.start))
        total = sum(read.nbytes for read in reads)
        arriving = [_Arriving(*described, device) for described in zip(parameters, slices, strict=True)]
        done = reported = 0
        for read in reads:
            done += arriving[read.parameter].read(checkpoint, read)
            if progress is not None and (done - reported) * 100 >= total and done < total:
                progress(done, total)
                reported = done
    if progress is not None:
        progress(done, total)
    return LoadReport(done, sum(parameter.nbytes for parameter in parameters))


def _plan(checkpoint: Checkpoint, parameters: list[Parameter], slices: list[tuple[Slice, ...]]) -> Iterable[_Read]:
    for index, parameter in enumerate(parameters):
        for piece in slices[index]:
            tensor = checkpoint.find(piece.source, piece.shape)
            _check_dtype(tensor, parameter)
            nbytes = prod(region_shape(piece.region)) * tensor.dtype.itemsize
            yield _Read(tensor, piece, index, nbytes)


def _check_dtype(tensor: StoredTensor, parameter: Parameter) -> None:
    """Floats are cast to each other while they are read; what a quantization format stores must be as declared."""
    stored = str(tensor.dtype).removeprefix("torch.")
    if stored == parameter.dtype or {stored, parameter.dtype} <= CONVERTIBLE:
        return
    raise CheckpointError(
        f"{tensor.file}: tensor {tensor.name} is {tensor.dtype}, expected {parameter.dtype} (quantization_config says "
        "which modules are quantized, and how)"
    )


class _Arriving:
    """A parameter whose tensor is made when its first piece is read, and handed over with its last."""

    def __init__(self, parameter: Parameter, slices: tuple[Slice, ...], device: torch.device | str) -> None:
        self._parameter = parameter
        self._device = device
        self._missing = len(slices)
        covered = sum(prod(region_shape(piece.into)) for piece in slices)
        self._padded = covered < prod(parameter.shape)
        self._tensor: torch.Tensor | None = None
        if not slices:
            parameter.fill(self._make())

    def _make(self) -> torch.Tensor:
        """Zeros where no slice writes."""
        make = torch.zeros if self._padded else torch.empty
        return make(self._parameter.shape, dtype=getattr(torch, self._parameter.dtype), device=self._device)

    def read(self, checkpoint: Checkpoint, read: _Read) -> int:
        """One piece. Returns the bytes read."""
        if self._tensor is None:
            self._tensor = self._make()
        done = _fill(checkpoint, read, self._tensor)
        self._missing -= 1
        if not self._missing:
            self._parameter.fill(self._tensor)
            self._tensor = None
        return done


def _fill(checkpoint: Checkpoint, read: _Read, tensor: torch.Tensor) -> int:
    piece = read.piece
    target = tensor[tuple(slice(start, stop) for start, stop in piece.into)]
    shape = region_shape(piece.region)
    target = target.view(target.shape[target.dim() - len(shape) :]) if target.dim() > len(shape) else target
    return read_region(checkpoint, read.tensor, piece.region, target.mT if piece.transpose else target)
