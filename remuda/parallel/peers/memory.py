"""Buffers that every rank of a group maps into its own address space.

By torch's symmetric memory (cuMem handles passed between processes of a host), without multicast. Tests have files in
shared memory for it, on which the kernels, in Triton's interpreter, show that the protocol is right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class PeerBuffer:
    """One rank's part of a buffer that all ranks of a group made alike."""

    own: torch.Tensor
    addresses: tuple[int, ...]  # of every rank's part, as this process sees them
    table: torch.Tensor  # the same, int64 [R] on the device
    keeps: Any  # what must live as long as the mapping


class PeerMemory(Protocol):
    """Makes buffers. Collective: every rank of the group asks for the same ones in the same order."""

    rank: int
    size: int
    device: torch.device

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype, fill: float) -> PeerBuffer:
        """A buffer of `shape` on every rank, filled, and visible to all when this returns."""
        ...


class CudaPeerMemory:
    """Over NVLink or PCIe peer access. `store` is a key-value store of this group alone."""

    def __init__(self, name: str, store: Any, rank: int, size: int, device: torch.device) -> None:
        from torch._C._distributed_c10d import _register_process_group, _SymmetricMemory

        self.rank, self.size, self.device = rank, size, device
        self._name = name
        self._store = store
        self._memory = _SymmetricMemory
        self._made = 0
        # Its rendezvous takes rank, size and store from a process group that is registered by name; this one does
        # nothing else, and must live as long as the name.
        group_name: Any = name  # newer versions of torch have a type for it
        self._group = dist.ProcessGroup(store, rank, size)
        self._group._set_group_name(group_name)
        _register_process_group(group_name, self._group)

    @staticmethod
    def reaches(devices: list[int]) -> bool:
        """Whether every one of these GPUs can read and write the memory of every other."""
        return all(torch.cuda.can_device_access_peer(a, b) for a in devices for b in devices if a != b)

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype, fill: float) -> PeerBuffer:
        strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        own = self._memory.empty_strided_p2p(shape, strides, dtype, self.device, self._name)
        handle = self._memory.rendezvous(own, self._name)
        offset = own.data_ptr() - handle.buffer_ptrs[self.rank]
        addresses = tuple(pointer + offset for pointer in handle.buffer_ptrs)
        own.fill_(fill)
        torch.cuda.synchronize(self.device)
        self._meet()
        return PeerBuffer(own, addresses, torch.tensor(addresses, dtype=torch.int64, device=self.device), handle)

    def _meet(self) -> None:
        """Nobody goes on before all have filled theirs."""
        self._made += 1
        meet(self._store, f"filled/{self._made}", self.size)


def meet(store: Any, name: str, size: int, timeout_s: float = 60.0) -> None:
    """Wait until `size` callers have come."""
    if store.add(f"meet/{name}", 1) == size:
        store.set(f"meet/{name}/all", b"1")
    store.wait([f"meet/{name}/all"], timedelta(seconds=timeout_s))
