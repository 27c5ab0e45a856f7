"""Memory that processes share on a CPU, in place of that of GPUs."""

from __future__ import annotations

import math
import os
from typing import Any

import torch

from remuda.parallel.peers.memory import PeerBuffer, meet


class SharedFileMemory:
    """`PeerMemory` on CPU, in files of /dev/shm that are unlinked as soon as everyone has mapped them."""

    device = torch.device("cpu")

    def __init__(self, name: str, store: Any, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self._stem = f"/dev/shm/remuda-peers-{name}"
        self._store = store
        self._made = 0

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype, fill: float) -> PeerBuffer:
        self._made += 1
        count = math.prod(shape)
        paths = [f"{self._stem}-{self._made}-{rank}" for rank in range(self.size)]
        mine = torch.from_file(paths[self.rank], shared=True, size=count, dtype=dtype)
        mine.fill_(fill)
        meet(self._store, f"made/{self._made}", self.size)
        parts = [torch.from_file(path, shared=True, size=count, dtype=dtype) for path in paths]
        meet(self._store, f"mapped/{self._made}", self.size)
        os.unlink(paths[self.rank])
        addresses = tuple(part.data_ptr() for part in parts)
        return PeerBuffer(parts[self.rank].view(shape), addresses, torch.tensor(addresses), parts)
