"""Read a rectangular region of a stored tensor: exactly its own bytes, in pieces of bounded size.

A contiguous region is read with pread, straight into the destination where that is possible. A region cut across rows
is copied out of a small moving window of the mapped file: one pread per short row would cost more than its bytes.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from math import prod

import numpy as np
import torch

from remuda.protocol.errors import CheckpointError
from remuda.weights.checkpoint import Checkpoint, StoredTensor
from remuda.weights.parameter import Region, region_shape

WINDOW_BYTES = 8 << 20


def read_region(checkpoint: Checkpoint, tensor: StoredTensor, region: Region, into: torch.Tensor) -> int:
    """Fill `into` (of the region's shape, any strides, any float dtype) and return the number of bytes read."""
    if into.numel() == 0:
        return 0
    if into.dtype == tensor.dtype and into.is_contiguous() and _is_contiguous(region, tensor.shape):
        flat = into.as_strided((into.numel(),), (1,)).view(torch.uint8).numpy()
        _read_exactly(checkpoint.descriptor(tensor.file), flat.data, _offset(tensor, region), tensor)
        return into.nbytes
    for block in blocks(region, tensor, WINDOW_BYTES, WINDOW_BYTES):
        target = into[tuple(slice(b0 - r0, b1 - r0) for (b0, b1), (r0, _) in zip(block, region, strict=True))]
        scratch = np.empty(block_bytes(tensor, block), np.uint8)
        read_block(checkpoint, tensor, block, scratch)
        target.copy_(torch.from_numpy(scratch).view(tensor.dtype).view(region_shape(block)))
    return block_bytes(tensor, region)


def read_block(checkpoint: Checkpoint, tensor: StoredTensor, block: Region, into: np.ndarray) -> None:
    """The bytes of a block, row after row, into `into`, an uint8 array of just so many. Several threads may."""
    descriptor, offset = checkpoint.descriptor(tensor.file), _offset(tensor, block)
    if _is_contiguous(block, tensor.shape):
        _read_exactly(descriptor, into.data, offset, tensor)
        return
    itemsize, shape = tensor.dtype.itemsize, region_shape(block)
    skip = offset % mmap.ALLOCATIONGRANULARITY
    length = skip + _span(tensor, block)
    try:
        window = mmap.mmap(descriptor, length, access=mmap.ACCESS_READ, offset=offset - skip)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{tensor.file}: truncated, or cannot be mapped: tensor {tensor.name}: {error}") from None
    with window:
        first = np.frombuffer(window, np.uint8, offset=skip)
        byte_shape = (*shape[:-1], shape[-1] * itemsize)
        byte_strides = (*(stride * itemsize for stride in _strides(tensor.shape)[:-1]), 1)
        rows = np.lib.stride_tricks.as_strided(first, byte_shape, byte_strides, writeable=False)
        np.copyto(into.reshape(byte_shape), rows)
        del first, rows  # the window cannot be unmapped while an array points into it


def blocks(region: Region, tensor: StoredTensor, most_bytes: int, most_span: int) -> Iterator[Region]:
    """Cut a region along its leading dimensions into blocks of at most so many bytes, and so many from the first byte
    to the last in the file."""
    nbytes, span = block_bytes(tensor, region), _span(tensor, region)
    excess = max(nbytes / most_bytes, span / most_span)
    axis = next((i for i, size in enumerate(region_shape(region)) if size > 1), None)
    if excess <= 1 or axis is None:
        yield region
        return
    start, stop = region[axis]
    step = max(1, int((stop - start) / excess))
    for at in range(start, stop, step):
        block = (*region[:axis], (at, min(at + step, stop)), *region[axis + 1 :])
        yield from blocks(block, tensor, most_bytes, most_span)


def block_bytes(tensor: StoredTensor, block: Region) -> int:
    return prod(region_shape(block)) * tensor.dtype.itemsize


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


def _offset(tensor: StoredTensor, region: Region) -> int:
    """File offset of the region's first element."""
    first = sum(start * stride for (start, _), stride in zip(region, _strides(tensor.shape), strict=True))
    return tensor.start + first * tensor.dtype.itemsize


def _span(tensor: StoredTensor, region: Region) -> int:
    """Bytes from the region's first element to its last, what lies between included."""
    last = sum((stop - start - 1) * s for (start, stop), s in zip(region, _strides(tensor.shape), strict=True))
    return (last + 1) * tensor.dtype.itemsize


def _is_contiguous(region: Region, shape: tuple[int, ...]) -> bool:
    """True if everything after the first dimension with more than one index is taken whole."""
    sizes = region_shape(region)
    first = next((i for i, size in enumerate(sizes) if size > 1), len(sizes))
    return sizes[first + 1 :] == shape[first + 1 :]


def _read_exactly(descriptor: int, buffer: memoryview, offset: int, tensor: StoredTensor) -> None:
    done = 0
    while done < len(buffer):
        try:
            count = os.preadv(descriptor, [buffer[done : done + (64 << 20)]], offset + done)
        except OSError as error:
            raise CheckpointError(f"{tensor.file}: reading tensor {tensor.name} failed: {error.strerror}") from None
        if count == 0:
            raise CheckpointError(f"{tensor.file}: truncated: tensor {tensor.name} ends after {offset + done} bytes")
        done += count
