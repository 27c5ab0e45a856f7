"""The engine's end of all its connections: accepts, reads and writes without ever blocking."""

from __future__ import annotations

import select
import socket
from dataclasses import dataclass, field
from typing import Any

from remuda.executor.address import Listener, die_with_peer
from remuda.protocol.nodes import NodeHello
from remuda.protocol.step import Hello
from remuda.protocol.wire import Channel, WireError, engine_side_of_rank

_MAX_STRANGERS = 64  # connections that have not said yet who they are


@dataclass
class Peer:
    """One connection. `rank` or `node` is set by its first message, which also stays in `hello`."""

    channel: Channel
    rank: int | None = None
    node: int | None = None
    hello: Hello | NodeHello | None = None
    outbox: bytearray = field(default_factory=bytearray)


@dataclass(frozen=True)
class Lost:
    """In place of a message: the connection is gone."""

    reason: str


class Peers:
    """Ranks and launchers by number. One descriptor, `fileno`, is readable when `poll` has something to do."""

    def __init__(self, listener: Listener) -> None:
        self.ranks: dict[int, Peer] = {}
        self.nodes: dict[int, Peer] = {}
        self._strangers = 0
        self._listener: Listener | None = listener
        self._by_fd: dict[int, Peer] = {}
        self._epoll = select.epoll()
        self._epoll.register(listener.sock.fileno(), select.EPOLLIN)

    @property
    def fileno(self) -> int:
        return self._epoll.fileno()

    def poll(self, timeout_s: float = 0.0) -> list[tuple[Peer, Any]]:
        """What has arrived: messages, and Lost as the last thing of a peer that had introduced itself."""
        arrived: list[tuple[Peer, Any]] = []
        for fd, events in self._epoll.poll(timeout_s):
            if self._listener is not None and fd == self._listener.sock.fileno():
                self._accept(self._listener.sock)
                continue
            peer = self._by_fd.get(fd)
            if peer is None:
                continue
            if events & select.EPOLLOUT:
                self._flush(peer)
            if events & ~select.EPOLLOUT:
                self._read(peer, arrived)
        return arrived

    def send(self, peer: Peer, frame: bytes) -> None:
        """Queue one encoded frame (`Channel.encode`). A peer that is gone shows as Lost in the next poll."""
        if peer.outbox:
            peer.outbox += frame
            return
        sent = _send(peer.channel.sock, frame)
        if sent < len(frame):
            peer.outbox += memoryview(frame)[sent:]
            self._epoll.modify(peer.channel.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def stop_listening(self) -> None:
        if self._listener is not None:
            self._epoll.unregister(self._listener.sock.fileno())
            self._listener.close()
            self._listener = None

    def drop(self, peer: Peer) -> None:
        if self._by_fd.pop(peer.channel.fileno(), None) is not None:
            self._epoll.unregister(peer.channel.fileno())
            self._strangers -= peer.hello is None
            peer.channel.close()

    def close(self) -> None:
        self.stop_listening()
        for peer in list(self._by_fd.values()):
            self.drop(peer)
        self._epoll.close()

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:  # it was gone before we looked
            return
        if self._strangers >= _MAX_STRANGERS:
            sock.close()
            return
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._strangers += 1
        self._by_fd[sock.fileno()] = Peer(engine_side_of_rank(sock))
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _read(self, peer: Peer, arrived: list[tuple[Peer, Any]]) -> None:
        reason = ""
        try:
            peer.channel.fill()
        except WireError as error:
            reason = error.message
        try:  # also what had come before the connection broke
            for message in peer.channel.pop():
                if peer.hello is None:
                    self._introduce(peer, message)
                arrived.append((peer, message))
        except WireError as error:
            reason = reason or error.message
        if reason:
            introduced = peer.hello is not None
            self.drop(peer)
            if introduced:
                arrived.append((peer, Lost(reason)))

    def _introduce(self, peer: Peer, message: Any) -> None:
        """The first message must be a greeting, and of somebody who is not here yet."""
        if isinstance(message, Hello) and message.rank not in self.ranks:
            peer.rank, peer.node = message.rank, message.node
            self.ranks[message.rank] = peer
        elif isinstance(message, NodeHello) and message.node not in self.nodes:
            peer.node = message.node
            self.nodes[message.node] = peer
            die_with_peer(peer.channel.sock)
        else:
            raise WireError("not a greeting, or of a rank or node that is already connected")
        peer.hello = message
        self._strangers -= 1

    def _flush(self, peer: Peer) -> None:
        del peer.outbox[: _send(peer.channel.sock, peer.outbox)]
        if not peer.outbox:
            self._epoll.modify(peer.channel.fileno(), select.EPOLLIN)


def _send(sock: socket.socket, data: bytes | bytearray) -> int:
    """Bytes that the kernel took. A broken connection takes everything: reading it reports the loss."""
    try:
        return sock.send(data)
    except BlockingIOError:
        return 0
    except OSError:
        return len(data)
