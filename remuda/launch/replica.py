"""A replica: a set of ranks and the engine process that drives them, as one object with a beginning and an end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, Self

from remuda.config.engine import EngineConfig
from remuda.engine.connection import EngineConnection
from remuda.launch.engine_process import EngineProcess
from remuda.protocol.errors import ReplicaDied
from remuda.protocol.progress import PhaseProgress
from remuda.protocol.request import EngineReady

if TYPE_CHECKING:
    from remuda.engine.client import AsyncEngine

_STOP_LIMIT_S = 10.0  # for the ranks to end in order
_START_STOP_LIMIT_S = 1.0  # during start-up there is nothing to lose, and it may wait for something slow


class Process(Protocol):
    """What a replica asks of its engine process: see `EngineProcess`."""

    sock: socket.socket

    def how_it_ended(self) -> str: ...

    def stop(self, limit_s: float) -> None: ...


class Replica:
    """Start, death and stop of one set of ranks. After `stop` it may `start` again.

    Requests never come here: they go to an `AsyncEngine`, which `start` attaches to this life of the replica and which
    outlives it. As a context manager it spawns the engine process on entry, so that what is imported there and here is
    imported at the same time, and leaves no process behind on exit.
    """

    def __init__(self, config: EngineConfig, spawn: Callable[[EngineConfig], Process] = EngineProcess) -> None:
        self._config = config
        self._spawn = spawn
        self._process: Process | None = None
        self._connection: EngineConnection | None = None

    def __enter__(self) -> Self:
        self._process = self._spawn(self._config)
        return self

    def __exit__(self, *_: object) -> None:
        self._end_process()

    async def start(
        self, engine: AsyncEngine, on_progress: Callable[[PhaseProgress], None] = lambda progress: None
    ) -> EngineReady:
        """Bring up every rank; from then on `engine` sends its requests there.

        Raises:
            ReplicaDied: with the reason why it cannot start. `stop` before another attempt.
        """
        assert self._connection is None, "a replica lives once at a time: stop it first"
        if self._process is None:
            self._process = self._spawn(self._config)
        self._connection = EngineConnection(engine, self._process.how_it_ended, on_progress)
        await self._connection.open(self._process.sock)
        return await self._connection.wait_ready()

    async def wait_died(self) -> ReplicaDied:
        """Wait until a rank or the engine process is gone; what is open then waits in the `AsyncEngine`."""
        assert self._connection is not None, "not started"
        return await asyncio.shield(self._connection.death)

    async def stop(self) -> None:
        """End this life; no process of it is left. Idempotent.

        Of a life that has died already, open requests wait for the next one; otherwise they end with an error.
        """
        if self._connection is not None:
            self._connection.close()
        await asyncio.to_thread(self._end_process)
        self._connection = None

    def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            ready = self._connection is not None and self._connection.ready.done()
            process.stop(_STOP_LIMIT_S if ready else _START_STOP_LIMIT_S)
