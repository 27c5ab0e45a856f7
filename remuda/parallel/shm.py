"""Collectives among ranks of one host through shared memory: a Communicator that costs microseconds, not sockets.

The C of it (shm.c) lies in the library of native kernels, which the caller has loaded and passes.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from ctypes import c_int32, c_int64, c_uint32, c_void_p
from typing import Any

import torch

from remuda.parallel.collectives import Communicator
from remuda.protocol.errors import PeerLost

_SPIN_US = 200

_SIGNATURES: dict[str, tuple[type | None, list[type]]] = {
    "remuda_shm_bytes": (c_int64, [c_int32]),
    "remuda_shm_all_reduce": (c_int32, [c_void_p, c_void_p, c_int64, c_int32]),
    "remuda_shm_gather": (c_int32, [c_void_p, c_void_p, c_void_p, c_int64]),
    "remuda_shm_broadcast": (c_int32, [c_void_p, c_void_p, c_int64, c_int32]),
    "remuda_shm_barrier": (c_int32, [c_void_p]),
    "remuda_shm_close": (None, [c_void_p]),
}


class PeerGroup(ctypes.Structure):
    """shm.c peer_group."""

    _fields_ = [
        ("shared", c_void_p), ("rank", c_int32), ("size", c_int32), ("meeting", c_uint32), ("spin_us", c_int32),
        ("timeout_ms", c_int64),
    ]  # fmt: skip


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class SharedMemory(Communicator):
    """Tensor-parallel ranks of one host that meet in one memory segment (`segment`: a descriptor from make_segment).

    A rank that waits longer than `timeout_s` for its peers, or whose peers have closed, raises PeerLost. `spin`:
    wait by spinning for a while first; right where every rank has a core of its own.
    """

    def __init__(
        self, library: ctypes.CDLL, segment: int, rank: int, size: int, *, timeout_s: float = 60.0, spin: bool = True
    ) -> None:
        self.rank = rank
        self.size = size
        _declare(library)
        self._map = mmap.mmap(segment, library.remuda_shm_bytes(size))
        self._anchor = ctypes.c_char.from_buffer(self._map)  # keeps the mapping while C points into it
        self._group = PeerGroup(
            shared=ctypes.addressof(self._anchor), rank=rank, size=size, meeting=0,
            spin_us=_SPIN_US if spin else 0, timeout_ms=int(timeout_s * 1000),
        )  # fmt: skip
        self._timeout_s = timeout_s
        self._address = ctypes.addressof(self._group)
        self._all_reduce = library.remuda_shm_all_reduce
        self._gather = library.remuda_shm_gather
        self._broadcast = library.remuda_shm_broadcast
        self._barrier = library.remuda_shm_barrier
        self._close = library.remuda_shm_close

    def all_reduce_(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over ranks in rank order, in float32, rounded once: the same bits on every rank. bf16 or float32."""
        if x.dtype not in (torch.bfloat16, torch.float32):
            raise TypeError(f"shared-memory all-reduce adds bfloat16 and float32 tensors, not {x.dtype}")
        dense = x.contiguous()
        self._check(self._all_reduce(self._address, dense.data_ptr(), dense.numel(), dense.dtype is torch.float32))
        return x if dense is x else x.copy_(dense)

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """[size, *x.shape] on every rank."""
        gathered = x.new_empty(self.size, *x.shape)
        x = x.contiguous()
        self._check(self._gather(self._address, x.data_ptr(), gathered.data_ptr(), x.nbytes))
        return gathered

    def gather(self, x: torch.Tensor) -> torch.Tensor | None:
        """[size, *x.shape] on rank 0, None elsewhere."""
        if self.rank == 0:
            return self.all_gather(x)
        x = x.contiguous()
        self._check(self._gather(self._address, x.data_ptr(), None, x.nbytes))
        return None

    def broadcast_(self, x: torch.Tensor, src: int = 0) -> torch.Tensor:
        """Fill `x` with rank `src`'s, in place; returns `x`."""
        dense = x.contiguous()
        self._check(self._broadcast(self._address, dense.data_ptr(), dense.nbytes, src))
        return x if dense is x else x.copy_(dense)

    def barrier(self) -> None:
        self._check(self._barrier(self._address))

    def close(self) -> None:
        """Wake whoever waits in a collective of this group with an error."""
        self._close(self._address)

    def _check(self, error: int) -> None:
        if error == errno.ETIMEDOUT:
            raise PeerLost(f"tensor-parallel rank {self.rank} waited {self._timeout_s:.0f} s in vain for its peers")
        if error:
            raise PeerLost(f"a peer of tensor-parallel rank {self.rank} has closed their shared memory")


def make_segment(library: ctypes.CDLL, size: int) -> int:
    """Descriptor of a new segment for `size` ranks; unnamed memory, gone with the last process that maps it."""
    segment = os.memfd_create("remuda-collectives")
    os.ftruncate(segment, _declare(library).remuda_shm_bytes(size))
    return segment


def connect(
    library: ctypes.CDLL, store: Any, rank: int, size: int, *, timeout_s: float = 60.0, spin: bool = True
) -> SharedMemory:
    """Meet the other ranks of a group on this host; `store` is a torch.distributed store that is theirs alone.

    Collective. Rank 0 makes the segment and keeps its descriptor open until all have mapped it.
    """
    if rank == 0:
        segment = make_segment(library, size)
        store.set("segment", f"/proc/{os.getpid()}/fd/{segment}")
    else:
        segment = os.open(store.get("segment").decode(), os.O_RDWR)
    try:
        group = SharedMemory(library, segment, rank, size, timeout_s=timeout_s, spin=spin)
        group.barrier()
    finally:
        os.close(segment)
    return group
