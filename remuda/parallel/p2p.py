"""Point-to-point traffic of the pipeline: hidden states forward, sampled tokens back to the first stage.

Both ends know every size from the step plan, so nothing but payload travels, first in, first out by step. There are two
kinds of link. A HostLink carries arrays of the host, which its caller waits for. A DeviceLink carries tensors of a
device: its operations are put into the order of the device's work, and the host learns no value. T tokens, H hidden
size, S sampled tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from remuda.protocol.errors import PeerLost

Tokens = npt.NDArray[np.int64]
Parcel = Any  # what a link makes of hidden states to be sent: its own business


class HostLink(Protocol):
    """Among stages whose runners keep tokens and hidden states on the host (`sockets.py`)."""

    def post_hidden(self, tokens: int, step: int) -> None:
        """Announce that the previous stage will send [tokens, H] for `step`."""
        ...

    def receive_hidden(self, step: int) -> torch.Tensor:
        """Wait for the hidden states posted for `step` (the oldest posted)."""
        ...

    def has_arrived(self) -> bool:
        """Whether the oldest posted receive can be taken without waiting for its sender."""
        ...

    def wrap(self, x_TH: torch.Tensor) -> Parcel:
        """Make hidden states ready for `send_hidden`, while there is time."""
        ...

    def send_hidden(self, parcel: Parcel, step: int) -> None:
        """Send to the same TP rank of the next stage. What was wrapped must not be written afterwards."""
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


class DeviceLink(Protocol):
    """Among stages whose runners keep them on a device.

    Every call takes its place behind the work that the device has been given so far, and returns without waiting for
    it. Work given to the device later sees what was received, and may overwrite what was sent.
    """

    def receive_hidden_(self, x_TH: torch.Tensor, step: int) -> None:
        """Fill with what the same TP rank of the previous stage sends for `step`."""
        ...

    def send_hidden(self, x_TH: torch.Tensor, step: int) -> None:
        """Send to the same TP rank of the next stage."""
        ...

    def receive_tokens_(self, tokens_S: torch.Tensor, step: int) -> None:
        """First stage only: fill with the tokens (int64) that the driver sends for `step`."""
        ...

    def send_tokens(self, tokens_S: torch.Tensor, step: int) -> None:
        """Driver only: send tokens (int64) to every rank of the first stage."""
        ...

    def close(self) -> None: ...


PipelineLink = HostLink | DeviceLink

_HERE, _THERE = 0, 1  # ranks in a group of two: who sends, who receives
_MAX_SENT = 16  # by then long received: no stage is so far ahead
_TAGS = 1 << 20  # tags repeat after so many steps; far fewer are ever on their way


class TorchLink:
    """DeviceLink over torch process groups of two ranks, one for each connection, so that no direction waits for
    another: with NCCL each has a communicator and a stream of its own."""

    def __init__(self, inbound: Any, outbound: list[Any]) -> None:
        self._inbound = inbound
        self._outbound = outbound
        self._sent: deque[tuple[torch.Tensor, Any]] = deque()

    def receive_hidden_(self, x_TH: torch.Tensor, step: int) -> None:
        self._receive(x_TH, step)

    def send_hidden(self, x_TH: torch.Tensor, step: int) -> None:
        self._send(self._outbound, x_TH, step)

    def receive_tokens_(self, tokens_S: torch.Tensor, step: int) -> None:
        self._receive(tokens_S, step)

    def send_tokens(self, tokens_S: torch.Tensor, step: int) -> None:
        self._send(self._outbound, tokens_S, step)

    def close(self) -> None:
        for group in (self._inbound, *self._outbound):
            group.abort()

    def _receive(self, x: torch.Tensor, step: int) -> None:
        with _lost_if_it_fails():
            self._inbound.recv([x], _HERE, step % _TAGS).wait()  # with NCCL, the current stream waits

    def _send(self, groups: list[Any], x: torch.Tensor, step: int) -> None:
        """Send a copy, kept until it has gone: the caller's buffer is written again by the next step."""
        copy = x.clone(memory_format=torch.contiguous_format)
        with _lost_if_it_fails():
            for group in groups:
                self._sent.append((copy, group.send([copy], _THERE, step % _TAGS)))
            while len(self._sent) > _MAX_SENT * len(groups):
                self._sent.popleft()[1].wait()


@contextmanager
def _lost_if_it_fails() -> Iterator[None]:
    """Raise PeerLost: that is what the errors of gloo and NCCL mean."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).split("\n", 1)[0]
        raise PeerLost(f"lost a neighbour in the pipeline: {reason}") from error
