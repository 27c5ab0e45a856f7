"""Listening, serving and draining: the HTTP process from its socket to its end."""

from __future__ import annotations

import asyncio
import gc
import os
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
from remuda.server.connection import BoundedConnection
from remuda.server.listen import address
from remuda.server.service import Service
from remuda.text.tokenizer import Tokenizer

_GRACE_S = 2.0  # for the error answers after the drain timeout to be written


class HttpServer(uvicorn.Server):
    """On the first signal: accept no more, let open requests finish; past the drain timeout end them with a 503.

    `on_serving(url)` is called when requests are accepted.
    """

    def __init__(
        self,
        config: ServerConfig,
        engine_config: EngineConfig,
        engine: AsyncEngine,
        tokenizer: Tokenizer,
        sock: socket.socket,
        on_serving: Callable[[str], None],
    ) -> None:
        self._app = App(Service(config, engine_config, engine, tokenizer))
        super().__init__(_uvicorn_config(config, self._app))
        self._settings = config
        self._engine = engine
        self._sock = sock
        self._on_serving = on_serving

    async def serve_until_stopped(self) -> None:
        """Until SIGTERM, SIGINT, `stop` or `drain`, and until what was open then has ended."""
        try:
            await self.serve(sockets=[self._sock])
        finally:
            self._app.service.close()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # What start-up made stays for good: keep it out of every later collection, which would stall all streams.
        gc.collect()
        gc.freeze()
        if self.started:
            self._on_serving(address(self._settings, self._sock))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal. uvicorn's own version would raise it again afterwards, before our caller could clean up."""
        self.stop()

    def stop(self) -> None:
        """Drain and end; called again, end without draining."""
        self.force_exit = self.should_exit
        self.drain()

    def drain(self) -> None:
        """Accept no more; end when what is open has ended or its time is over."""
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.service.draining = True
        timer = asyncio.get_running_loop().call_later(
            self._settings.drain_timeout_s,
            self._engine.fail_all,
            ShuttingDown("the server is shutting down and this request did not finish in time"),
        )
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()


def _check_tls(config: ServerConfig) -> None:
    for name in ("ssl_keyfile", "ssl_certfile", "ssl_ca_certs"):
        path = getattr(config, name)
        if path is not None and not os.access(path, os.R_OK):
            raise ConfigError(f"--{name.replace('_', '-')} {path} cannot be read")
        if path is not None and config.ssl_certfile is None:
            raise ConfigError(
                f"--{name.replace('_', '-')} needs --ssl-certfile: without it the server speaks plain HTTP"
            )
    if config.ssl_cert_reqs not in (ssl.CERT_NONE, ssl.CERT_OPTIONAL, ssl.CERT_REQUIRED):
        raise ConfigError(f"--ssl-cert-reqs must be 0, 1 or 2, not {config.ssl_cert_reqs}")
    if config.ssl_cert_reqs and config.ssl_ca_certs is None:
        raise ConfigError("--ssl-cert-reqs needs --ssl-ca-certs: nothing would tell which clients to trust")


def _uvicorn_config(config: ServerConfig, app: App) -> uvicorn.Config:
    _check_tls(config)
    result = uvicorn.Config(
        app,
        http=BoundedConnection,
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
