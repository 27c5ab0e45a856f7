"""Frames between processes: a length, a kind byte, and msgpack that decodes into exactly one type. Nothing unpickles.

A frame is  u32 little-endian payload length | u8 kind | payload.  A peer that sends a longer frame than
`MAX_FRAME_BYTES`, or bytes that do not decode, is treated as dead (`WireError`), never trusted further.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Any

import msgspec

from remuda.protocol.errors import RemudaError
from remuda.protocol.nodes import FromNode, ToNode
from remuda.protocol.request import ClientMessage, EngineMessage
from remuda.protocol.step import FromRank, StepPlan, StepResult, ToRank

MAX_FRAME_BYTES = 1 << 30
_HEADER = struct.Struct("<IB")


class WireError(RemudaError):
    """The peer closed the connection or sent something that is not a message."""


class Channel:
    """Typed messages over a stream socket. `kinds` maps a kind byte to the type that its payload decodes to."""

    def __init__(
        self, sock: socket.socket, sends: dict[type, int], receives: dict[int, Any], default_send: int
    ) -> None:
        self.sock = sock
        self._sends = sends
        self._default_send = default_send
        self._decoders = {kind: msgspec.msgpack.Decoder(type_) for kind, type_ in receives.items()}
        self._encoder = msgspec.msgpack.Encoder()
        self._buffer = bytearray()

    def fileno(self) -> int:
        return self.sock.fileno()

    def encode(self, message: Any) -> bytes:
        payload = self._encoder.encode(message)
        if len(payload) > MAX_FRAME_BYTES:
            raise WireError(f"message of {len(payload)} bytes exceeds the limit of {MAX_FRAME_BYTES}")
        return _HEADER.pack(len(payload), self._sends.get(type(message), self._default_send)) + payload

    def send(self, message: Any) -> None:
        """Blocking send. Raises WireError if the peer is gone."""
        try:
            self.sock.sendall(self.encode(message))
        except OSError as error:
            raise WireError(f"connection lost: {error}") from error

    def receive(self) -> Any:
        """Block until one message is complete. Raises WireError at end of stream."""
        while True:
            for message in self.pop(limit=1):
                return message
            self.fill()

    def fill(self) -> None:
        """Read once what the socket has (blocks if it is a blocking socket with nothing to read)."""
        try:
            data = self.sock.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError as error:
            raise WireError(f"connection lost: {error}") from error
        if not data:
            raise WireError("connection closed by peer")
        self.feed(data)

    def feed(self, data: bytes) -> None:
        """Take bytes that somebody else (an asyncio transport) has read from the socket."""
        self._buffer += data

    def pop(self, limit: int | None = None) -> Iterator[Any]:
        """Yield complete messages already read."""
        count = 0
        while limit is None or count < limit:
            if len(self._buffer) < _HEADER.size:
                return
            length, kind = _HEADER.unpack_from(self._buffer)
            if length > MAX_FRAME_BYTES or kind not in self._decoders:
                raise WireError(f"bad frame (length {length}, kind {kind})")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(memoryview(self._buffer)[_HEADER.size : end])
            del self._buffer[:end]
            try:
                message = self._decoders[kind].decode(payload)
            except msgspec.MsgspecError as error:
                raise WireError(f"undecodable message of kind {kind}: {error}") from error
            count += 1
            yield message

    def close(self) -> None:
        self.sock.close()


def engine_side_of_rank(sock: socket.socket) -> Channel:
    """The engine's end of the channel of a rank, or of a node's launcher: which of them the first message tells."""
    return Channel(sock, {StepPlan: 1}, {0: FromRank | FromNode, 1: StepResult}, default_send=0)


def node_side(sock: socket.socket) -> Channel:
    """A launcher's end."""
    return Channel(sock, {}, {0: ToNode}, default_send=0)


def rank_side(sock: socket.socket) -> Channel:
    """A rank's end."""
    control = ToRank.__args__[1:]  # the tagged control messages, without the array-like plan
    union: Any = control[0]
    for member in control[1:]:
        union = union | member
    return Channel(sock, {StepResult: 1}, {0: union, 1: StepPlan}, default_send=0)


def client_side(sock: socket.socket) -> Channel:
    """The engine client's end of its channel to the engine core."""
    return Channel(sock, {}, {0: EngineMessage}, default_send=0)


def engine_side_of_client(sock: socket.socket) -> Channel:
    return Channel(sock, {}, {0: ClientMessage}, default_send=0)
