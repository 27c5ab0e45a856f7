"""Fill a model's parameters from a checkpoint: each rank its own bytes, once, in file order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from remuda.protocol.dtypes import CONVERTIBLE
from remuda.protocol.errors import CheckpointError
from remuda.weights.arriving import Arriving, Filled, Read
from remuda.weights.checkpoint import Checkpoint, StoredTensor
from remuda.weights.parameter import Parameter
from remuda.weights.reader import read_region
from remuda.weights.upload import CudaLane, Upload

Progress = Callable[[int, int], None]  # (bytes done, bytes in all)


@dataclass(frozen=True)
class LoadReport:
    checkpoint_bytes_read: int  # tensor data only; headers are extra
    weight_bytes: int  # what the parameters take in memory


def load_parameters(
    parameters: Iterable[Parameter],
    directory: str | Path,
    device: torch.device | str,
    progress: Progress | None = None,
    filled: Filled = lambda parameter: None,
) -> LoadReport:
    """Allocate and fill every parameter. Raises CheckpointError naming file, tensor and expectation.

    All tensors are looked up before the first byte is read, so a checkpoint that does not fit fails at once. `progress`
    is called about a hundred times and once at the end, `filled` with each parameter as soon as it is complete.
    """
    parameters = list(parameters)
    with Checkpoint(directory) as checkpoint:
        reads = list(_plan(checkpoint, parameters, device, filled))
        reads.sort(key=lambda read: (read.tensor.file, read.tensor.start))
        total = sum(read.nbytes for read in reads)
        done = reported = 0
        for read in _carry(checkpoint, reads, torch.device(device)):
            read.arriving.count_in(filled)
            done += read.nbytes
            if progress is not None and (done - reported) * 100 >= total and done < total:
                progress(done, total)
                reported = done
    if progress is not None:
        progress(done, total)
    return LoadReport(done, sum(parameter.nbytes for parameter in parameters))


def _carry(checkpoint: Checkpoint, reads: list[Read], device: torch.device) -> Iterator[Read]:
    """Bring what is read to its place; yields each read when that has been done."""
    if device.type == "cuda":
        yield from Upload(checkpoint, CudaLane(device)).carry(reads)
        return
    for read in reads:
        read_region(checkpoint, read.tensor, read.piece.region, read.target())
        yield read


def _plan(
    checkpoint: Checkpoint, parameters: list[Parameter], device: torch.device | str, filled: Filled
) -> Iterator[Read]:
    for parameter in parameters:
        slices = parameter.slices
        arriving = Arriving(parameter, slices, device)
        if not slices:
            arriving.count_in(filled, pieces=0)
        for piece in slices:
            tensor = checkpoint.find(piece.source, piece.shape)
            _check_dtype(tensor, parameter)
            yield Read(tensor, piece, arriving)


def _check_dtype(tensor: StoredTensor, parameter: Parameter) -> None:
    """Floats are cast to each other while they are read; what a quantization format stores must be as declared."""
    stored = str(tensor.dtype).removeprefix("torch.")
    if stored == parameter.dtype or {stored, parameter.dtype} <= CONVERTIBLE:
        return
    raise CheckpointError(
        f"{tensor.file}: tensor {tensor.name} is {tensor.dtype}, expected {parameter.dtype} (quantization_config says "
        "which modules are quantized, and how)"
    )
