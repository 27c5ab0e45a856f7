"""Listening, serving and draining: the HTTP process from its socket to its end."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from types import FrameType

import uvicorn

from remuda.config.engine import EngineConfig
from remuda.engine.client import AsyncEngine
from remuda.protocol.errors import ConfigError, ShuttingDown
from remuda.server.app import App
from remuda.server.config import ServerConfig
from remuda.server.listen import address, listen
from remuda.server.service import Service
from remuda.text.tokenizer import Tokenizer

_GRACE_S = 2.0  # for the error answers after the drain timeout to be written


async def serve_http(
    config: ServerConfig,
    engine_config: EngineConfig,
    engine: AsyncEngine,
    tokenizer: Tokenizer,
    *,
    sock: socket.socket | None = None,
    on_serving: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain. `engine` is connected; it should be ready.

    `on_serving(url)` is called when requests are accepted. Raises ReplicaDied if the engine fails: by then every open
    request has been answered with that error.
    """
    service = Service(config, engine_config, engine, tokenizer)
    app = App(service)
    sock = sock or listen(config)
    server = DrainingServer(_uvicorn_config(config, app), app)
    server.on_started = lambda: on_serving(address(config, sock))
    watch = asyncio.create_task(_stop_with_engine(engine, server))
    try:
        await server.serve(sockets=[sock])
    finally:
        watch.cancel()
        service.close()
    if engine.failure is not None:
        raise engine.failure


class DrainingServer(uvicorn.Server):
    """On the first signal: accept no more, let open requests finish; past the drain timeout end them with a 503."""

    def __init__(self, config: uvicorn.Config, app: App) -> None:
        super().__init__(config)
        self.on_started: Callable[[], None] = lambda: None
        self._app = app

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.on_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A second signal ends everything at once."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.draining = True
        service = self._app.service
        timer = asyncio.get_running_loop().call_later(
            service.config.drain_timeout_s,
            service.engine.fail_all,
            ShuttingDown("the server is shutting down and this request did not finish in time"),
        )
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()


async def _stop_with_engine(engine: AsyncEngine, server: DrainingServer) -> None:
    await engine.wait_failed()
    server.should_exit = True


def _uvicorn_config(config: ServerConfig, app: App) -> uvicorn.Config:
    for name in ("ssl_keyfile", "ssl_certfile", "ssl_ca_certs"):
        path = getattr(config, name)
        if path is not None:
            try:
                open(path, "rb").close()
            except OSError as error:
                raise ConfigError(f"--{name.replace('_', '-')} {path} cannot be read: {error.strerror}") from error
    if config.ssl_keyfile and not config.ssl_certfile:
        raise ConfigError("--ssl-keyfile needs --ssl-certfile")
    result = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_level=config.log_level,
        access_log=config.access_log,
        server_header=False,
        root_path=config.root_path,
        timeout_keep_alive=65,
        timeout_graceful_shutdown=int(config.drain_timeout_s + _GRACE_S),
        ssl_keyfile=config.ssl_keyfile,
        ssl_certfile=config.ssl_certfile,
        ssl_ca_certs=config.ssl_ca_certs,
        ssl_cert_reqs=config.ssl_cert_reqs,
    )
    try:
        result.load()
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"the TLS certificate or key is not usable: {error}") from error
    return result
