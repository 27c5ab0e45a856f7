"""Read a rectangular region of a stored tensor: exactly its own bytes, in pieces of bounded size.

A contiguous region is read with pread, straight into the destination where that is possible. A region cut across rows
is copied out of a small moving window of the mapped file: one pread per short row would cost more than its bytes.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from math import prod

import torch

from remuda.protocol.errors import CheckpointError
from remuda.weights.checkpoint import Checkpoint, StoredTensor
from remuda.weights.parameter import Region, region_shape

WINDOW_BYTES = 8 << 20


def read_region(checkpoint: Checkpoint, tensor: StoredTensor, region: Region, into: torch.Tensor) -> int:
    """Fill `into` (of the region's shape, any strides, any float dtype) and return the number of bytes read."""
    if into.numel() == 0:
        return 0
    descriptor = checkpoint.descriptor(tensor.file)
    direct = into.dtype == tensor.dtype and into.is_contiguous() and into.device.type == "cpu"
    if direct and _is_contiguous(region, tensor.shape):
        flat = into.as_strided((into.numel(),), (1,)).view(torch.uint8).numpy()
        _read_exactly(descriptor, flat.data, _offset(tensor, region), tensor)
        return into.nbytes
    for block in _blocks(region, tensor):
        target = into[tuple(slice(b0 - r0, b1 - r0) for (b0, b1), (r0, _) in zip(block, region, strict=True))]
        _read_block(descriptor, tensor, block, target)
    return prod(region_shape(region)) * tensor.dtype.itemsize


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


def _blocks(region: Region, tensor: StoredTensor) -> Iterator[Region]:
    """Cut a region along its leading dimensions into blocks whose span fits the window."""
    span = _span(tensor, region)
    if span <= max(WINDOW_BYTES, tensor.dtype.itemsize):
        yield region
        return
    axis = next(i for i, size in enumerate(region_shape(region)) if size > 1)
    start, stop = region[axis]
    step = max(1, (stop - start) * WINDOW_BYTES // span)
    for at in range(start, stop, step):
        yield from _blocks((*region[:axis], (at, min(at + step, stop)), *region[axis + 1 :]), tensor)


def _read_block(descriptor: int, tensor: StoredTensor, block: Region, target: torch.Tensor) -> None:
    """One block of at most WINDOW_BYTES, converted to the target's dtype."""
    offset, span, shape = _offset(tensor, block), _span(tensor, block), region_shape(block)
    if _is_contiguous(block, tensor.shape):
        scratch = bytearray(span)
        _read_exactly(descriptor, memoryview(scratch), offset, tensor)
        target.copy_(torch.frombuffer(scratch, dtype=tensor.dtype).view(shape))
        return
    page_offset = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    skip = offset - page_offset
    # ACCESS_COPY only because torch warns about read-only buffers: nothing writes to it.
    with mmap.mmap(descriptor, skip + span, access=mmap.ACCESS_COPY, offset=page_offset) as window:
        aligned = skip % tensor.dtype.itemsize == 0
        buffer, start = (window, skip) if aligned else (bytearray(window[skip:]), 0)
        flat = torch.frombuffer(buffer, dtype=tensor.dtype, offset=start, count=span // tensor.dtype.itemsize)
        target.copy_(flat.as_strided(shape, _strides(tensor.shape)))
        del flat, buffer  # the window cannot be unmapped while a tensor points into it


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
