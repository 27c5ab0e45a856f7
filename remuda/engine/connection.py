"""One life of an engine process as its client sees it: start-up, outputs, death."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from remuda.protocol.errors import ReplicaDied
from remuda.protocol.progress import PhaseProgress
from remuda.protocol.request import (
    ClientMessage,
    EngineFailed,
    EngineReady,
    EngineStats,
    Shutdown,
    StepOutputs,
)
from remuda.protocol.wire import WireError, client_side

if TYPE_CHECKING:
    from remuda.engine.client import AsyncEngine


class EngineConnection(asyncio.Protocol):
    """The client's end of a stream socket to an engine process. Attaches `engine` when the ranks are ready.

    `how_it_ended` says why the process is gone ("exit code -9"). It may take a while: it is asked in a thread.
    """

    def __init__(
        self, engine: AsyncEngine, how_it_ended: Callable[[], str], on_progress: Callable[[PhaseProgress], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[EngineReady] = loop.create_future()
        self.death: asyncio.Future[ReplicaDied] = loop.create_future()  # stays open when the end was `close`
        self._engine = engine
        self._how_it_ended = how_it_ended
        self._on_progress = on_progress
        self._transport: asyncio.Transport | None = None
        self._closing = False

    async def open(self, sock: socket.socket) -> None:
        """Take over a connected socket."""
        sock.setblocking(False)
        self._channel = client_side(sock)
        loop = asyncio.get_running_loop()
        if sock.family == socket.AF_UNIX:
            await loop.create_unix_connection(lambda: self, sock=sock)
        else:
            await loop.create_connection(lambda: self, sock=sock)

    async def wait_ready(self) -> EngineReady:
        """Wait for the end of start-up. Raises ReplicaDied, with the reason, if that is a failure."""
        either: list[asyncio.Future[Any]] = [self.ready, self.death]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if self.death.done():
            raise self.death.result()
        return self.ready.result()

    def send(self, *messages: ClientMessage) -> None:
        """Never waits. What is sent to an engine that is gone is lost; its death is reported by itself."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join([self._channel.encode(message) for message in messages]))

    def close(self) -> None:
        """Tell the engine process to stop. After its death that changes nothing; before, open requests end."""
        self.send(Shutdown())
        self._closing = True
        if not self.death.done():
            self._engine.close()
        if self._transport is not None:
            self._transport.close()

    # ----------------------------------------------------------------------------------------- asyncio.Protocol methods

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.death.done():
            return
        self._channel.feed(data)
        try:
            for message in self._channel.pop():
                self._take(message)
        except WireError as error:
            self._die(ReplicaDied(f"the engine sent something that is not a message: {error}"))
            assert self._transport is not None
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._closing and not self.death.done():
            asked = asyncio.get_running_loop().run_in_executor(None, self._how_it_ended)
            asked.add_done_callback(lambda answer: self._die(ReplicaDied(f"the engine is gone: {answer.result()}")))

    def _take(self, message: object) -> None:
        match message:
            case StepOutputs() | EngineStats():
                self._engine.take(message)
            case PhaseProgress():
                self._on_progress(message)
            case EngineReady():
                self._engine.attach(self)
                self.ready.set_result(message)
            case EngineFailed():
                self._die(ReplicaDied(message.message, node=message.node, rank=message.rank, cause=message.cause))

    def _die(self, reason: ReplicaDied) -> None:
        if not self._closing and not self.death.done():
            self._engine.detach(reason)
            self.death.set_result(reason)
