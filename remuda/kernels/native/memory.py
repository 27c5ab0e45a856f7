"""Memory that every step streams through, in 2 MiB pages where the kernel grants them.

A decode step reads each weight once, at the pace of memory, and each page of it then costs a walk of the page table.
"""

from __future__ import annotations

import contextlib
import math
import mmap

import torch

_HUGE_PAGE_BYTES = 2 << 20
_CHUNK_BYTES = 256 << 20  # address space: what is never written is never resident
_ALIGNMENT_BYTES = 64


def huge_pages(count_bytes: int) -> torch.Tensor:
    """Zeroed bytes, uint8 [count_bytes], starting at a huge page; resident only where written."""
    memory = mmap.mmap(-1, count_bytes + _HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel built without them: small pages are slower, not wrong
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    start = -whole.data_ptr() % _HUGE_PAGE_BYTES
    return whole[start : start + count_bytes]


class Arena:
    """Hands out tensors one behind the other, so that small ones share huge pages. Memory returns when all are gone."""

    def __init__(self) -> None:
        self._rest = torch.empty(0, dtype=torch.uint8)

    def empty(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """A tensor with any content."""
        count_bytes = dtype.itemsize * math.prod(shape)
        if count_bytes > len(self._rest):
            self._rest = huge_pages(max(_CHUNK_BYTES, count_bytes + _ALIGNMENT_BYTES))
        taken, end = self._rest[:count_bytes], -(-count_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        self._rest = self._rest[end:]
        return taken.view(dtype).view(shape)
