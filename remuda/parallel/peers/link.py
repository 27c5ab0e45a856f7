"""The pipeline link between GPUs of one host: a stage writes its rows into the next stage's memory and sets flags.

Receives cost a wait of one small program and a copy inside the GPU; nothing goes through NCCL or the host. Slots of the
inboxes are used in turn and need no credits: the engine has at most `slots` plans in flight, and a plan whose result it
has seen has been read from every inbox. T tokens, H hidden size, S sampled tokens.
"""

from __future__ import annotations

import torch

from remuda.parallel.peers import kernels
from remuda.parallel.peers.memory import PeerBuffer, PeerMemory
from remuda.parallel.topology import Topology

_PROGRAMS = 32  # of a large put: enough to fill the link, few enough to leave the GPU to others
_BLOCK = 4096  # int32 that one program copies at a time
_LOOKS = 1 << 28  # of one wait: minutes, because the stage before may have much to compute


class Inbox:
    """On every rank: slots for one kind of message of at most `size_bytes`, and a flag for each program that writes."""

    def __init__(self, memory: PeerMemory, slots: int, size_bytes: int, error: torch.Tensor) -> None:
        self.slots = slots
        self._words = -(-size_bytes // 16) * 4  # slots begin at 16 bytes
        self._data: PeerBuffer = memory.buffer((slots, self._words), torch.int32, 0)
        self._flags: PeerBuffer = memory.buffer((slots, _PROGRAMS), torch.int32, 0)
        self._on_device = memory.device.type == "cuda"
        self._error = error
        self._received = 0

    def put(self, x: torch.Tensor, rank: int, count: int) -> None:
        """Write `x` into the inbox of `rank`, to which `count` messages have gone before."""
        slot, words = count % self.slots, x.nbytes // 4
        assert x.is_contiguous() and x.nbytes % 4 == 0 and words <= self._words
        kernels.put[(_programs(words),)](
            x.view(-1).view(torch.int32), self._data.addresses[rank] + 4 * slot * self._words,
            self._flags.addresses[rank] + 4 * slot * _PROGRAMS, words, count + 1, BLOCK=_BLOCK, num_warps=8,
        )  # fmt: skip

    def take_(self, x: torch.Tensor) -> None:
        """Fill `x` with the next message that this rank gets."""
        slot, words = self._received % self.slots, x.nbytes // 4
        self._received += 1
        kernels.await_flags[(1,)](
            self._flags.own[slot], self._error, _programs(words), self._received, BLOCK=_PROGRAMS, LIMIT=_LOOKS,
            ON_DEVICE=self._on_device, num_warps=1,
        )  # fmt: skip
        x.view(-1).view(torch.int32).copy_(self._data.own[slot, :words])


class PeerLink:
    """A `DeviceLink` (`parallel/p2p.py`) for a replica whose ranks are all on one host."""

    def __init__(
        self,
        memory: PeerMemory,
        topology: Topology,
        error: torch.Tensor,
        *,
        slots: int,
        max_hidden_bytes: int,
        max_rows: int,
    ) -> None:
        """`memory` spans all ranks of the replica. `slots`: plans in flight at most; `max_rows`: of one step. `error`
        is an int32 on the device, not 0 once a wait has given up."""
        self._hidden = Inbox(memory, slots, max_hidden_bytes, error)
        self._tokens = Inbox(memory, 4 * slots, 8 * max_rows, error)  # taken late: only when some row needs them
        self._next = topology.rank + topology.tp_size
        self._first_stage = topology.stage_ranks(0)
        self._hidden_sent = self._tokens_sent = 0

    def receive_hidden_(self, x_TH: torch.Tensor, step: int) -> None:
        """Fill with what the same TP rank of the previous stage sends for `step`."""
        self._hidden.take_(x_TH)

    def send_hidden(self, x_TH: torch.Tensor, step: int) -> None:
        """Send to the same TP rank of the next stage."""
        self._hidden.put(x_TH, self._next, self._hidden_sent)
        self._hidden_sent += 1

    def receive_tokens_(self, tokens_S: torch.Tensor, step: int) -> None:
        """First stage only: fill with the tokens (int64) that the driver sends for `step`."""
        self._tokens.take_(tokens_S)

    def send_tokens(self, tokens_S: torch.Tensor, step: int) -> None:
        """Driver only: send tokens (int64) to every rank of the first stage."""
        for rank in self._first_stage:
            self._tokens.put(tokens_S, rank, self._tokens_sent)
        self._tokens_sent += 1

    def close(self) -> None:
        """The mappings end with the process."""


def _programs(words: int) -> int:
    """How many programs write a message: sender and receiver must agree."""
    return min(_PROGRAMS, max(1, -(-words // _BLOCK)))
