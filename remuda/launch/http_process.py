"""The HTTP process: a replica behind an HTTP server, from start-up to the end, whatever brings it about."""

from __future__ import annotations

import asyncio
import signal
import socket
from typing import TYPE_CHECKING, Protocol

from remuda.config.engine import EngineConfig
from remuda.launch.keeper import keep
from remuda.launch.replica import Replica
from remuda.protocol.progress import PhaseProgress
from remuda.protocol.request import EngineReady
from remuda.server.config import ServerConfig
from remuda.server.listen import listen

if TYPE_CHECKING:
    from remuda.engine.client import AsyncEngine
    from remuda.server.serve import HttpServer

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Observer(Protocol):
    """Who is told how far things are."""

    def progress(self, progress: PhaseProgress) -> None: ...

    def ready(self, ready: EngineReady) -> None:
        """Every rank has passed its self-test."""

    def serving(self, url: str) -> None:
        """Requests are accepted."""


def run(config: EngineConfig, server: ServerConfig, observer: Observer) -> None:
    """Serve until SIGINT or SIGTERM, then drain. Ends every process that it started.

    Raises:
        ConfigError: the address is taken, or a certificate, template or tokenizer is unusable.
        ReplicaDied: the ranks could not start for the first time.
    """
    _leave_on_signals()
    with listen(server) as sock, Replica(config) as replica:
        import uvloop

        uvloop.run(_start_and_serve(config, server, sock, replica, observer))


async def _start_and_serve(
    config: EngineConfig, server: ServerConfig, sock: socket.socket, replica: Replica, observer: Observer
) -> None:
    # Imported while the engine process starts.
    from remuda.engine.client import AsyncEngine
    from remuda.metrics.serving import ServingMetrics
    from remuda.server.serve import HttpServer
    from remuda.text.tokenizer import Tokenizer

    engine = AsyncEngine(config.scheduler, ServingMetrics(config.scheduler.max_model_len))
    try:
        # Made before the weights are read: what is wrong with a certificate or a template should show at once.
        tokenizer = Tokenizer.from_dir(server.tokenizer or config.model.path)
        http = HttpServer(server, config, engine, tokenizer, sock, observer.serving)
        if await _started(replica, engine, observer):
            await serve_until_stopped(http, replica, engine)
    finally:
        await replica.stop()


async def serve_until_stopped(http: HttpServer, replica: Replica, engine: AsyncEngine) -> None:
    """Answer until a signal, whatever happens to the replica meanwhile: it is started again. Ends it."""
    keeper = asyncio.create_task(keep(replica, engine))
    keeper.add_done_callback(lambda _: http.drain())  # it ends by itself only through a fault of its own
    try:
        await http.serve_until_stopped()
        if keeper.done():
            keeper.result()
    finally:
        keeper.cancel()
        await asyncio.wait([keeper])
        engine.close()
        await replica.stop()


class _Leave:
    """Before there is anything to drain, a signal leaves through every `finally`, with status 0.

    An exception may be lost where Python ignores it (a destructor, a weak reference's callback during an import):
    `asked` remembers the signal all the same.
    """

    asked = False

    def __call__(self, *_: object) -> None:
        self.asked = True
        raise SystemExit(0)


_leave = _Leave()


def _leave_on_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, _leave)


async def _started(replica: Replica, engine: AsyncEngine, observer: Observer) -> bool:
    """Bring up the ranks; False if a signal came first. Raises ReplicaDied with the reason if they cannot start."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in SIGNALS:
        loop.add_signal_handler(number, stopped.set)
    if _leave.asked:
        stopped.set()
    start, stop = asyncio.create_task(replica.start(engine, observer.progress)), asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait([start, stop], return_when=asyncio.FIRST_COMPLETED)
        if stopped.is_set():
            return False
        ready = await start
    finally:
        start.cancel()
        stop.cancel()
        for number in SIGNALS:
            loop.remove_signal_handler(number)
        _leave_on_signals()  # until the HTTP server has handlers of its own
    observer.ready(ready)
    return not _leave.asked
