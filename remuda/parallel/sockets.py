"""A HostLink over plain sockets, for stages that compute on CPUs: unix sockets on one host, TCP between hosts.

A hop costs one wake-up: the computing thread reads and writes the socket itself, and the kernel's buffers play the
posted receives. What a buffer does not take at once is left to a thread, so that a send never waits for the next stage.
T tokens, H hidden size, S sampling rows.
"""

from __future__ import annotations

import queue
import secrets
import select
import socket
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from remuda.parallel.p2p import Tokens
from remuda.parallel.topology import Topology
from remuda.protocol.errors import PeerLost

T = TypeVar("T")

_TOKEN_BYTES = 16


class PeerGone(PeerLost):
    """The neighbour closed its end: it died, or the replica is stopping."""

    def __init__(self) -> None:
        super().__init__("connection closed by peer in the pipeline")


class _Outbox:
    """The sending end of one connection: in order, never blocking the caller."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._left_behind: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        self._pending = 0  # sends that the thread has not finished; only while it is 0 may the caller write itself
        self._thread: threading.Thread | None = None
        self._lost = False

    def send(self, data: memoryview) -> None:
        """What `data` shows must not be written afterwards."""
        if self._lost:
            raise PeerGone
        if not self._pending:
            try:
                sent = self._sock.send(data, socket.MSG_DONTWAIT)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                raise PeerGone from error
            if sent == len(data):
                return
            data = data[sent:]
        self._pending += 1
        self._left_behind.put(data)
        if self._thread is None:
            self._thread = threading.Thread(target=self._send_rest, name="pipeline sender", daemon=True)
            self._thread.start()

    def _send_rest(self) -> None:
        while (data := self._left_behind.get()) is not None:
            try:
                self._sock.sendall(data)
            except OSError:
                self._lost = True
                return
            self._pending -= 1

    def close(self) -> None:
        self._left_behind.put(None)
        self._sock.close()


@dataclass(frozen=True, slots=True)
class _Receive(Generic[T]):
    """One to come: made ready when it is announced, since little else happens then."""

    step: int
    into: T
    view: memoryview


class SocketLink:
    """See HostLink (`p2p.py`). `connect` builds it."""

    def __init__(
        self, inbound: socket.socket, outbound: list[socket.socket], hidden_size: int, dtype: torch.dtype
    ) -> None:
        self._inbound = inbound
        self._outboxes = [_Outbox(sock) for sock in outbound]
        self._hidden_size = hidden_size
        self._dtype = dtype
        # Oldest first. A rank receives either hidden states or tokens: only one of these is ever in use.
        self._hidden: deque[_Receive[torch.Tensor]] = deque()
        self._tokens: deque[_Receive[Tokens]] = deque()

    def post_hidden(self, tokens: int, step: int) -> None:
        x_TH = torch.empty(tokens, self._hidden_size, dtype=self._dtype)
        self._hidden.append(_Receive(step, x_TH, _bytes_of(x_TH)))

    def receive_hidden(self, step: int) -> torch.Tensor:
        return self._receive(self._hidden.popleft(), step)

    def has_arrived(self) -> bool:
        return bool(self._hidden or self._tokens) and bool(select.select([self._inbound], [], [], 0.0)[0])

    def wrap(self, x_TH: torch.Tensor) -> memoryview:
        return _bytes_of(x_TH.contiguous())

    def send_hidden(self, parcel: memoryview, step: int) -> None:
        self._outboxes[0].send(parcel)

    def post_tokens(self, count: int, step: int) -> None:
        tokens_S = np.empty(count, np.int64)
        self._tokens.append(_Receive(step, tokens_S, tokens_S.data.cast("B")))

    def receive_tokens(self, step: int) -> Tokens:
        return self._receive(self._tokens.popleft(), step)

    def send_tokens(self, tokens_S: Tokens, step: int) -> None:
        data = tokens_S.data.cast("B")
        for outbox in self._outboxes:
            outbox.send(data)

    def close(self) -> None:
        self._inbound.close()
        for outbox in self._outboxes:
            outbox.close()

    def _receive(self, posted: _Receive[T], step: int) -> T:
        assert posted.step == step, f"receives are taken in order: {posted.step} was posted before {step}"
        view = posted.view
        while view:
            try:
                count = self._inbound.recv_into(view, len(view), socket.MSG_WAITALL)
            except OSError as error:
                raise PeerGone from error
            if not count:
                raise PeerGone
            view = view[count:]
        return posted.into


def _bytes_of(x: torch.Tensor) -> memoryview:
    array = (x.view(torch.int16) if x.dtype == torch.bfloat16 else x).numpy()  # numpy has no bfloat16
    return array.data.cast("B")


def connect(
    store: Any, topology: Topology, address: str, ranks_per_node: int, hidden_size: int, dtype: torch.dtype
) -> SocketLink:
    """Meet the neighbours through `store`. `address`: this host's, as other nodes reach it. Collective.

    Every rank has one inbound connection: from the stage before, or, on the first stage, from the driver.
    """
    source, targets = topology.receives_from, topology.sends_to
    local = topology.rank // ranks_per_node == source // ranks_per_node
    secret = secrets.token_bytes(_TOKEN_BYTES)
    with _listen(local, address) as listener:
        store.set(f"link/{topology.rank}", secret + _name_of(listener))
        outbound = [_join(store.get(f"link/{target}")) for target in targets]
        inbound = _admit(listener, secret)
    return SocketLink(inbound, outbound, hidden_size, dtype)


def _listen(local: bool, address: str) -> socket.socket:
    if not local:
        return socket.create_server((address, 0))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0remuda-{secrets.token_hex(8)}")  # abstract: leaves nothing in the file system
    listener.listen()
    return listener


def _name_of(listener: socket.socket) -> bytes:
    if listener.family == socket.AF_UNIX:
        return bytes(listener.getsockname())
    host, port = listener.getsockname()[:2]
    return f"{host} {port}".encode()


def _join(published: bytes) -> socket.socket:
    secret, name = published[:_TOKEN_BYTES], published[_TOKEN_BYTES:]
    if name.startswith(b"\0"):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(name)
    else:
        host, port = name.decode().split()
        sock = socket.create_connection((host, int(port)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(secret)
    return sock


def _admit(listener: socket.socket, secret: bytes) -> socket.socket:
    """The one connection that knows our secret; others are turned away."""
    while True:
        sock, _ = listener.accept()
        sock.settimeout(5.0)
        try:
            known = secrets.compare_digest(sock.recv(_TOKEN_BYTES, socket.MSG_WAITALL), secret)
        except OSError:
            known = False
        if known:
            sock.settimeout(None)
            return sock
        sock.close()
