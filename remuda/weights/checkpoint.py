"""A sharded safetensors checkpoint: which file holds which tensor, and where. Only headers are read here.

A safetensors file is  u64 little-endian header length | JSON header | data;  the header maps a tensor's name to its
dtype, shape and [begin, end) within the data.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from remuda.protocol.errors import CheckpointError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
_MAX_HEADER_BYTES = 256 << 20
_DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I32": torch.int32,
    "I64": torch.int64,
}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: `start` is the file offset of its first byte; rows are contiguous (C order)."""

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


class Checkpoint:
    """A checkpoint directory. Opens a file when the first tensor of it is asked for; close() when done."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._files = self._read_index()
        self._open: dict[Path, tuple[int, dict[str, Any], int]] = {}

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for descriptor, _, _ in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def _read_index(self) -> dict[str, Path] | None:
        """Tensor name -> file, or None where one file holds everything."""
        index = self.directory / INDEX_FILE
        if not index.exists():
            if not (self.directory / SINGLE_FILE).exists():
                raise CheckpointError(f"{self.directory} holds neither {INDEX_FILE} nor {SINGLE_FILE}")
            return None
        try:
            files = json.loads(index.read_bytes())["weight_map"]
            return {str(name): self._inside(str(file), index) for name, file in files.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{index} is no safetensors index (weight_map: name -> file): {error!r}") from None

    def _inside(self, file: str, index: Path) -> Path:
        if Path(file).name != file:
            raise CheckpointError(f"{index} names {file!r}: files must lie in the checkpoint directory itself")
        return self.directory / file

    def find(self, name: str, expected: tuple[int, ...]) -> StoredTensor:
        """The stored tensor `name`. Raises CheckpointError if it is missing, malformed or of another shape."""
        file = self.directory / SINGLE_FILE if self._files is None else self._files.get(name)
        if file is None:
            raise CheckpointError(
                f"{self.directory / INDEX_FILE}: tensor {name} is missing (expected shape {list(expected)})"
            )
        _, header, data_start = self._opened(file)
        if name not in header:
            raise CheckpointError(f"{file}: tensor {name} is missing (expected shape {list(expected)})")
        tensor, end = _stored(name, file, header[name], data_start)
        if tensor.shape != expected:
            raise CheckpointError(f"{file}: tensor {name} has shape {list(tensor.shape)}, expected {list(expected)}")
        if end - tensor.start != tensor.nbytes:
            raise CheckpointError(f"{file}: tensor {name} spans {end - tensor.start} bytes, expected {tensor.nbytes}")
        return tensor

    def descriptor(self, file: Path) -> int:
        """An open file descriptor for preads."""
        return self._opened(file)[0]

    def _opened(self, file: Path) -> tuple[int, dict[str, Any], int]:
        if file not in self._open:
            try:
                descriptor = os.open(file, os.O_RDONLY)
            except OSError as error:
                raise CheckpointError(f"{file} cannot be opened: {error.strerror}") from None
            try:
                header, data_start = _read_header(descriptor, file)
            except CheckpointError:
                os.close(descriptor)
                raise
            except OSError as error:  # a directory opens, but does not read
                os.close(descriptor)
                raise CheckpointError(f"{file} cannot be read: {error.strerror}") from None
            self._open[file] = (descriptor, header, data_start)
        return self._open[file]


def _read_header(descriptor: int, file: Path) -> tuple[dict[str, Any], int]:
    """(name -> entry, file offset of the data); checks that the file is as long as its header promises."""
    size = os.fstat(descriptor).st_size
    prefix = os.pread(descriptor, 8, 0)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
    if not 0 < length <= min(_MAX_HEADER_BYTES, size - 8):
        raise CheckpointError(f"{file}: no safetensors header, or truncated ({size} bytes, header of {length})")
    try:
        header = json.loads(os.pread(descriptor, length, 8))
        header.pop("__metadata__", None)
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise CheckpointError(f"{file}: malformed safetensors header: {error!r}") from None
    if size < 8 + length + end:
        raise CheckpointError(f"{file}: truncated: {size} bytes, but its tensors end at byte {8 + length + end}")
    return header, 8 + length


def _stored(name: str, file: Path, entry: Any, data_start: int) -> tuple[StoredTensor, int]:
    """The tensor of one header entry and the file offset of its end."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        well_formed = 0 <= begin <= end and all(type(n) is int and n >= 0 for n in (begin, end, *shape))
    except (KeyError, TypeError, ValueError):
        well_formed = False
    if not well_formed:
        raise CheckpointError(f"{file}: tensor {name} has a malformed header entry {entry!r:.200}")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise CheckpointError(f"{file}: tensor {name} has dtype {dtype}; supported: {', '.join(_DTYPES)}")
    return StoredTensor(name, file, _DTYPES[dtype], shape, data_start + begin), data_start + end
