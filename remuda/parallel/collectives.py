"""Collectives among the tensor-parallel ranks of one stage, behind one small interface."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    AddNorm = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], tuple[torch.Tensor, torch.Tensor]]

from remuda.protocol.errors import PeerLost


class Communicator(Protocol):
    """Every rank of the group calls the same methods in the same order with tensors of the same shape and dtype.

    T tokens, H hidden size.
    """

    size: int
    rank: int

    def all_reduce_(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, in place; returns `x`."""
        ...

    def all_reduce_add_norm(
        self, partial_TH: torch.Tensor, residual_TH: torch.Tensor, weight_H: torch.Tensor, eps: float, add_norm: AddNorm
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(rms_norm(residual + sum of partials), residual + sum of partials); both inputs may be overwritten.

        What every half of a decoder layer ends with, so that a device may do it in one kernel. `add_norm` is the kernel
        table's, for a sum that has been made.
        """
        return add_norm(self.all_reduce_(partial_TH), residual_TH, weight_H, eps)

    def all_reduce_add(self, partial_TH: torch.Tensor, residual_TH: torch.Tensor) -> torch.Tensor:
        """residual + sum of partials, in the residual's place: the end of a stage."""
        return residual_TH.add_(self.all_reduce_(partial_TH))

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """[size, *x.shape] on every rank."""
        ...

    def gather(self, x: torch.Tensor) -> torch.Tensor | None:
        """[size, *x.shape] on rank 0, None elsewhere."""
        ...

    def broadcast_(self, x: torch.Tensor, src: int = 0) -> torch.Tensor:
        """Fill `x` with rank `src`'s, in place; returns `x`."""
        ...

    def greatest_keys_(self, key_S: torch.Tensor) -> torch.Tensor:
        """The greatest of all ranks' keys (int64, see `kernels/head/torch.py`), on every rank; may be in place."""
        return self.all_gather(key_S).amax(dim=0)

    def barrier(self) -> None: ...

    def close(self) -> None: ...


class SingleRank(Communicator):
    """The group of one: nothing to exchange."""

    size = 1
    rank = 0

    def all_reduce_(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def all_reduce_add_norm(
        self, partial_TH: torch.Tensor, residual_TH: torch.Tensor, weight_H: torch.Tensor, eps: float, add_norm: AddNorm
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return add_norm(partial_TH, residual_TH, weight_H, eps)

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        return x.unsqueeze(0)

    def gather(self, x: torch.Tensor) -> torch.Tensor | None:
        return x.unsqueeze(0)

    def broadcast_(self, x: torch.Tensor, src: int = 0) -> torch.Tensor:
        return x

    def barrier(self) -> None:
        return

    def close(self) -> None:
        return


class TorchDistributed(Communicator):
    """gloo or NCCL, over one torch process group object (no default group, no global state)."""

    def __init__(self, group: Any, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self._group = group

    def all_reduce_(self, x: torch.Tensor) -> torch.Tensor:
        self._run(self._group.allreduce, x)
        return x

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        gathered = x.new_empty(self.size * x.numel())
        self._run(self._group._allgather_base, gathered, x.reshape(-1))
        return gathered.view(self.size, *x.shape)

    def gather(self, x: torch.Tensor) -> torch.Tensor | None:
        if self.rank:
            self._run(self._group.gather, [], x.contiguous(), 0)
            return None
        gathered = x.new_empty(self.size, *x.shape)
        self._run(self._group.gather, list(gathered.unbind(0)), x.contiguous(), 0)
        return gathered

    def broadcast_(self, x: torch.Tensor, src: int = 0) -> torch.Tensor:
        self._run(self._group.broadcast, x, src)
        return x

    def barrier(self) -> None:
        self._run(self._group.barrier)

    def close(self) -> None:
        """Wake whoever waits in a collective of this group with an error."""
        self._group.set_timeout(timedelta(seconds=1))
        self._group.abort()

    def _run(self, collective: Callable[..., Any], *arguments: Any) -> None:
        """Start a collective and wait for it. Raises PeerLost: that is what the errors of gloo and NCCL mean."""
        try:
            collective(*arguments).wait()
        except RuntimeError as error:
            raise PeerLost(f"lost a tensor-parallel peer: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]


class Switchable:
    """A communicator whose transport may be exchanged between two steps (on every rank at the same step)."""

    def __init__(self, transport: Communicator) -> None:
        self.size = transport.size
        self.rank = transport.rank
        self._use(transport)

    def switch(self, transport: Communicator) -> None:
        """Continue over `transport`. The earlier one is closed by whoever built it."""
        assert (transport.size, transport.rank) == (self.size, self.rank)
        self._use(transport)

    def _use(self, transport: Communicator) -> None:
        self.transport = transport
        # Bound methods, not delegation: a decode step makes two calls per layer.
        self.all_reduce_ = transport.all_reduce_
        self.all_reduce_add_norm = transport.all_reduce_add_norm
        self.all_reduce_add = transport.all_reduce_add
        self.all_gather = transport.all_gather
        self.greatest_keys_ = transport.greatest_keys_
        self.gather = transport.gather
        self.broadcast_ = transport.broadcast_
        self.barrier = transport.barrier
        self.close = transport.close
