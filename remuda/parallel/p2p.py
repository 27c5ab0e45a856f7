"""Point-to-point traffic of the pipeline: hidden states forward, sampled tokens back to the first stage.

Both ends know every size from the step plan, so nothing but payload travels. Receives are posted as soon as a plan is
known, sends are left behind; both are first in, first out by step. T tokens, H hidden size, S sampling rows.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from remuda.parallel.topology import Topology

Tokens = npt.NDArray[np.int64]  # on the host: that is where they are chosen, and where they are looked up
Parcel = Any  # what a link makes of a tensor to be sent: its own business

_HIDDEN, _TOKENS = 0, 1
_STEP_TAGS = 1 << 20  # tags repeat after so many steps; far fewer are ever in flight


def _tag(kind: int, step: int) -> int:
    return (step % _STEP_TAGS) * 2 + kind


class PipelineLink(Protocol):
    """What a worker needs of its neighbours in the pipeline."""

    def post_hidden(self, tokens: int, step: int) -> None:
        """Announce that the previous stage will send [tokens, H] for `step`."""
        ...

    def receive_hidden(self, step: int) -> torch.Tensor:
        """Wait for the hidden states posted for `step` (the oldest posted)."""
        ...

    def has_arrived(self) -> bool:
        """Whether the oldest posted receive can be taken without waiting for its sender."""
        ...

    def pack(self, x_TH: torch.Tensor) -> Parcel:
        """Make hidden states ready for `send_hidden`, while there is time: a device may still be computing them."""
        ...

    def send_hidden(self, parcel: Parcel, step: int) -> None:
        """Send to the same TP rank of the next stage. What was packed must not be written afterwards."""
        ...

    def post_tokens(self, count: int, step: int) -> None:
        """Announce that the driver will send `count` sampled tokens of `step` (first stage only)."""
        ...

    def receive_tokens(self, step: int) -> Tokens:
        """Wait for the tokens posted for `step` (the oldest posted): [count]."""
        ...

    def send_tokens(self, tokens_S: Tokens, step: int) -> None:
        """Driver only: send tokens to every rank of the first stage; they must not be written afterwards."""
        ...

    def close(self) -> None: ...


class TorchLink:
    """PipelineLink over a torch process group that spans all ranks of the replica."""

    def __init__(
        self, group: Any, topology: Topology, hidden_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._group = group
        self._hidden_size = hidden_size
        self._dtype = dtype
        self._device = device
        rank, tp = topology.rank, topology.tp_size
        self._previous = rank - tp
        self._next = rank + tp
        self._driver = topology.stage_ranks(topology.pp_size - 1)[0]
        self._first_stage = topology.stage_ranks(0)
        self._hidden: deque[tuple[int, torch.Tensor, Any]] = deque()
        self._tokens: deque[tuple[int, torch.Tensor, Any]] = deque()
        self._sent: deque[tuple[torch.Tensor, Any]] = deque()
        self._max_sent = 8 * topology.pp_size * tp

    def post_hidden(self, tokens: int, step: int) -> None:
        x_TH = torch.empty(tokens, self._hidden_size, dtype=self._dtype, device=self._device)
        self._hidden.append((step, x_TH, self._group.recv([x_TH], self._previous, _tag(_HIDDEN, step))))

    def receive_hidden(self, step: int) -> torch.Tensor:
        return self._take(self._hidden, step)

    def has_arrived(self) -> bool:
        posted = self._hidden or self._tokens  # a rank receives either hidden states or tokens
        return bool(posted) and posted[0][2].is_completed()

    def pack(self, x_TH: torch.Tensor) -> torch.Tensor:
        return x_TH.contiguous()

    def send_hidden(self, parcel: torch.Tensor, step: int) -> None:
        self._send(parcel, self._next, _tag(_HIDDEN, step))

    def post_tokens(self, count: int, step: int) -> None:
        tokens_S = torch.empty(count, dtype=torch.int64, device=self._device)
        self._tokens.append((step, tokens_S, self._group.recv([tokens_S], self._driver, _tag(_TOKENS, step))))

    def receive_tokens(self, step: int) -> Tokens:
        return self._take(self._tokens, step).cpu().numpy()

    def send_tokens(self, tokens_S: Tokens, step: int) -> None:
        on_device_S = torch.from_numpy(tokens_S).to(self._device)
        for rank in self._first_stage:
            self._send(on_device_S, rank, _tag(_TOKENS, step))

    def close(self) -> None:
        self._group.abort()

    @staticmethod
    def _take(posted: deque[tuple[int, torch.Tensor, Any]], step: int) -> torch.Tensor:
        posted_step, x, work = posted.popleft()
        assert posted_step == step, f"receives are taken in order: {posted_step} was posted before {step}"
        work.wait()
        return x

    def _send(self, x: torch.Tensor, rank: int, tag: int) -> None:
        """Start a send. The tensor is kept until its send is done; old sends are waited for, which bounds both."""
        self._sent.append((x, self._group.send([x], rank, tag)))
        while len(self._sent) > self._max_sent:
            self._sent.popleft()[1].wait()
