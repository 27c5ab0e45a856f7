"""From the files onto a GPU: several threads read into pinned buffers, a stream of its own copies these over.

Bytes travel as they lie in the files, as many pieces to a buffer as fit; on the device each piece is cast, turned and
put into its place. The host holds two buffers for each reader, whatever the size of the checkpoint.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from remuda.weights.arriving import Read
from remuda.weights.checkpoint import Checkpoint
from remuda.weights.parameter import Region, region_shape
from remuda.weights.reader import block_bytes, blocks, read_block

BUFFER_BYTES = 8 << 20
_SPAN_BYTES = 64 << 20  # of a block in its file, where rows are cut
_ALIGNMENT = 16  # of pieces in a buffer
_MOST_READERS = 8  # page cache to pinned memory: each copies 3 to 6 GB/s


class Reached(Protocol):
    """A point in the order of a lane's work."""

    def synchronize(self) -> None: ...

    def query(self) -> bool: ...


class Lane(Protocol):
    """The way to a device, beside what the device does for others."""

    def pinned(self, nbytes: int) -> torch.Tensor:
        """uint8 on the host that the device reads while the host goes on."""
        ...

    def staging(self, nbytes: int) -> torch.Tensor:
        """uint8 on the device."""
        ...

    def aside(self) -> AbstractContextManager[None]:
        """What is begun inside goes this way, behind what the device was given before."""
        ...

    def reached(self) -> Reached:
        """The end of what goes this way so far."""
        ...

    def join(self) -> None:
        """What the device is given from now on comes after all that went this way."""
        ...


class CudaLane:
    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def pinned(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def staging(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self._device)

    @contextmanager
    def aside(self) -> Iterator[None]:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield

    def reached(self) -> Reached:
        return self._stream.record_event()

    def join(self) -> None:
        torch.cuda.current_stream(self._device).wait_stream(self._stream)


@dataclass(frozen=True)
class Block:
    """A part of a read, and where it lies in the buffer that it shares with others."""

    read: Read
    region: Region
    start: int
    stop: int
    last: bool  # of its read


def batches(reads: list[Read]) -> Iterator[list[Block]]:
    """What shares a buffer, in the order of `reads`."""
    batch: list[Block] = []
    used = 0
    for read in reads:
        regions = deque(blocks(read.piece.region, read.tensor, BUFFER_BYTES, _SPAN_BYTES))
        while regions:
            region = regions.popleft()
            nbytes = block_bytes(read.tensor, region)
            if batch and used + nbytes > BUFFER_BYTES:
                yield batch
                batch, used = [], 0
            batch.append(Block(read, region, used, used + nbytes, last=not regions))
            used += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
    if batch:
        yield batch


class _Buffer:
    """Pinned memory and its twin on the device."""

    def __init__(self, lane: Lane) -> None:
        self.host, self.device = lane.pinned(BUFFER_BYTES), lane.staging(BUFFER_BYTES)

    def fill(self, checkpoint: Checkpoint, batch: list[Block]) -> None:
        """In a thread: the bytes of a batch."""
        host = self.host.numpy()
        for block in batch:
            read_block(checkpoint, block.read.tensor, block.region, host[block.start : block.stop])

    def place(self, batch: list[Block]) -> None:
        """Copy over, and on the device each block into its tensor."""
        used = batch[-1].stop
        self.device[:used].copy_(self.host[:used], non_blocking=True)
        for block in batch:
            stored = self.device[block.start : block.stop].view(block.read.tensor.dtype)
            block.read.target(block.region).copy_(stored.view(region_shape(block.region)))


class Upload:
    """Carries reads over one lane. Only the caller's thread touches the device."""

    def __init__(self, checkpoint: Checkpoint, lane: Lane, readers: int | None = None) -> None:
        self._checkpoint = checkpoint
        self._lane = lane
        self._readers = readers or max(2, min(_MOST_READERS, torch.get_num_threads()))
        self._free = [_Buffer(lane) for _ in range(2 * self._readers)]
        self._reading: deque[tuple[_Buffer, list[Block], Future[None]]] = deque()
        self._copying: deque[tuple[_Buffer, Reached]] = deque()

    def carry(self, reads: list[Read]) -> Iterator[Read]:
        """Yields each read when all that is given to the device from then on finds it in its place."""
        with ThreadPoolExecutor(self._readers, "weights") as pool:
            for batch in batches(reads):
                while not self._free:
                    self._reclaim(wait=not self._reading)
                    if not self._free:
                        yield from self._send()
                buffer = self._free.pop()
                self._reading.append((buffer, batch, pool.submit(buffer.fill, self._checkpoint, batch)))
            while self._reading:
                yield from self._send()
        while self._copying:
            self._reclaim(wait=True)

    def _send(self) -> list[Read]:
        """Wait for the buffer that has been filled for longest, and send it and those behind it that are full too."""
        arrived: list[Read] = []
        self._reading[0][2].result()
        while self._reading and self._reading[0][2].done():
            buffer, batch, reading = self._reading.popleft()
            reading.result()
            with self._lane.aside():
                buffer.place(batch)
            self._copying.append((buffer, self._lane.reached()))
            arrived += [block.read for block in batch if block.last]
        self._lane.join()
        return arrived

    def _reclaim(self, wait: bool) -> None:
        """Buffers that have been copied can be filled again. `wait`: for one at least."""
        if wait:
            self._copying[0][1].synchronize()
        while self._copying and self._copying[0][1].query():
            self._free.append(self._copying.popleft()[0])
