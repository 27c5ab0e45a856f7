"""The collectives of tensor-parallel GPUs that reach each other's memory: own kernels where few rows are exchanged.

Up to `Limits.push_rows` rows one kernel sums over the ranks, adds the residual and normalizes; above, NCCL sums and a
second kernel does the rest. Limits were measured on four H100 without multicast (docs/gpu.md). T tokens, H hidden size,
S sampled rows, R ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from remuda.parallel.collectives import Communicator
from remuda.parallel.peers import kernels
from remuda.parallel.peers.memory import PeerBuffer, PeerMemory

if TYPE_CHECKING:
    from remuda.parallel.collectives import AddNorm

_FORMATS = {  # of elements, of their bits, and the bits of -0.0
    torch.bfloat16: (tl.bfloat16, tl.int16, -(1 << 15)),
    torch.float16: (tl.float16, tl.int16, -(1 << 15)),
    torch.float32: (tl.float32, tl.int32, -(1 << 31)),
}
_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


@dataclass(frozen=True)
class Limits:
    """What the kernels are used for."""

    push_rows: int = 256  # most rows of an all-reduce by one kernel; beyond them NCCL
    key_rows: int = 1024  # most rows of an exchange of (maximum, id)
    looks: int = 1 << 27  # before a wait gives up: about a minute


class PeerCommunicator(Communicator):
    """A `Communicator` for one dtype and hidden size. Everything that has no kernel here goes to `fallback` (NCCL).

    `error` is an int32 on the device, not 0 once a wait has given up: whoever reads results looks at it.
    """

    def __init__(
        self,
        memory: PeerMemory,
        fallback: Communicator,
        hidden_size: int,
        dtype: torch.dtype,
        error: torch.Tensor,
        limits: Limits = Limits(),
        dependent_launch: bool = False,
    ) -> None:
        self.size, self.rank = memory.size, memory.rank
        self._fallback = fallback
        self._limits = limits
        self._hidden_size = hidden_size
        self._dtype = dtype
        element, bits, sentinel = _FORMATS[dtype]
        shape = (3, self.size, limits.push_rows, hidden_size)
        self._rows: PeerBuffer = memory.buffer(shape, _BITS[dtype], sentinel)
        self._keys: PeerBuffer = memory.buffer((3, self.size, limits.key_rows), torch.int64, 0)
        self._row_epochs = torch.zeros(limits.push_rows, dtype=torch.int32, device=memory.device)
        self._key_epoch = torch.zeros(1, dtype=torch.int32, device=memory.device)
        self._error = error
        pdl = {"launch_pdl": True} if dependent_launch else {}
        self._ranks = {"RANK": self.rank, "WORLD": self.size, "LIMIT": limits.looks, "PDL": dependent_launch, **pdl}
        self._row_constants = {
            "CAPACITY": limits.push_rows, "H": hidden_size, "BLOCK": triton.next_power_of_2(hidden_size),
            "DTYPE": element, "BITS": bits, "SENTINEL": sentinel, "num_warps": _warps(hidden_size),
        }  # fmt: skip

    def _serves(self, x_TH: torch.Tensor) -> bool:
        return (
            x_TH.dtype is self._dtype
            and x_TH.shape[-1] == self._hidden_size
            and x_TH.numel() <= self._limits.push_rows * self._hidden_size
            and x_TH.is_contiguous()
        )

    def all_reduce_(self, x: torch.Tensor) -> torch.Tensor:
        if not self._serves(x):
            return self._fallback.all_reduce_(x)
        kernels.all_reduce[(x.numel() // self._hidden_size,)](
            x, self._rows.table, self._row_epochs, self._error, **self._row_constants, **self._ranks
        )
        return x

    def all_reduce_add_norm(
        self, partial_TH: torch.Tensor, residual_TH: torch.Tensor, weight_H: torch.Tensor, eps: float, add_norm: AddNorm
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x_TH = partial_TH
        if not (self._serves(x_TH) and residual_TH.is_contiguous()):
            return add_norm(self._fallback.all_reduce_(x_TH), residual_TH, weight_H, eps)
        kernels.all_reduce_add_norm[(len(x_TH),)](
            x_TH, residual_TH, weight_H, x_TH, self._rows.table, self._row_epochs, self._error, eps, NORM=True,
            **self._row_constants, **self._ranks,
        )  # fmt: skip
        return x_TH, residual_TH

    def all_reduce_add(self, partial_TH: torch.Tensor, residual_TH: torch.Tensor) -> torch.Tensor:
        x_TH = partial_TH
        if not (self._serves(x_TH) and residual_TH.is_contiguous()):
            return residual_TH.add_(self._fallback.all_reduce_(x_TH))
        kernels.all_reduce_add_norm[(len(x_TH),)](
            x_TH, residual_TH, x_TH, x_TH, self._rows.table, self._row_epochs, self._error, 0.0, NORM=False,
            **self._row_constants, **self._ranks,
        )  # fmt: skip
        return residual_TH

    def greatest_keys_(self, key_S: torch.Tensor) -> torch.Tensor:
        count = len(key_S)
        if count > self._limits.key_rows:
            return self.all_gather(key_S).amax(dim=0)
        kernels.greatest_key[(1,)](
            key_S, self._keys.table, self._key_epoch, self._error, count, CAPACITY=self._limits.key_rows,
            BLOCK=triton.next_power_of_2(self._limits.key_rows), **self._ranks,
        )  # fmt: skip
        return key_S

    # ------------------------------------------------------------------------------------------------ by the fallback

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        return self._fallback.all_gather(x)

    def gather(self, x: torch.Tensor) -> torch.Tensor | None:
        return self._fallback.gather(x)

    def broadcast_(self, x: torch.Tensor, src: int = 0) -> torch.Tensor:
        return self._fallback.broadcast_(x, src)

    def barrier(self) -> None:
        self._fallback.barrier()

    def close(self) -> None:
        self._fallback.close()


def _warps(hidden_size: int) -> int:
    """One program holds a whole row: 16 elements a thread keep it in registers."""
    return min(16, max(1, triton.next_power_of_2(hidden_size) // 512))
