"""`remuda serve`: the HTTP process. It starts the engine process, shows its start-up, then answers until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setproctitle import setproctitle

from remuda import __version__
from remuda.cli.engine_process import EngineProcess
from remuda.cli.startup import StartupPrinter, invitation
from remuda.cli.wiring import DEFAULT_MODEL, engine_config
from remuda.config.arguments import ENGINE_FLAGS, SERVER_FLAGS
from remuda.config.engine import EngineConfig
from remuda.config.parser import FlagParser
from remuda.config.resolve import describe
from remuda.protocol.errors import ConfigError
from remuda.server.config import ServerConfig
from remuda.server.listen import listen

if TYPE_CHECKING:
    from remuda.engine.client import AsyncEngine

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(argv: Sequence[str]) -> int:
    parser = FlagParser(
        "remuda serve",
        "Answer OpenAI-compatible HTTP requests with a model.",
        (*SERVER_FLAGS, *ENGINE_FLAGS),
        operand="[MODEL]",
    )
    parser.add_argument("model", nargs="?", help="checkpoint directory, or a repository in the Hugging Face cache")
    options = parser.read(argv)
    config = engine_config(options)
    printer = StartupPrinter(config.parallel.world_size)
    printer.line(f"remuda {__version__}: {config.model.path}\n  {describe(config)}")
    if config.parallel.node_rank > 0:
        return _join(config, printer)
    return _serve(options, config, printer)


def _join(config: EngineConfig, printer: StartupPrinter) -> int:
    """Be a node that answers no HTTP: run its ranks until node 0 ends."""
    from remuda.executor.nodes import run_node

    parallel = config.parallel
    printer.line(f"  node {parallel.node_rank}: joining {parallel.master_addr}:{parallel.master_port}")
    run_node(config)
    printer.line(f"  node {parallel.node_rank}: the engine on node 0 has ended")
    return 0


def _serve(options: dict[str, Any], config: EngineConfig, printer: StartupPrinter) -> int:
    server = _server_config(options)
    setproctitle("remuda: http")
    _exit_on_signals()
    with listen(server) as sock:
        engine = EngineProcess(config, options["distributed_executor_backend"])
        try:
            import uvloop

            return uvloop.run(_answer(options, config, server, sock, engine, printer))
        finally:
            engine.stop()


async def _answer(
    options: dict[str, Any], config: EngineConfig, server: ServerConfig, sock: socket.socket,
    process: EngineProcess, printer: StartupPrinter,
) -> int:  # fmt: skip
    """Start up, serve, drain. Returns the exit status."""
    # Imported while the engine process starts.
    from remuda.engine.client import AsyncEngine
    from remuda.metrics.serving import ServingMetrics
    from remuda.server.serve import HttpServer
    from remuda.text.tokenizer import Tokenizer

    engine = AsyncEngine(
        config.scheduler, ServingMetrics(config.scheduler.max_model_len),
        how_it_ended=process.how_it_ended, on_progress=printer.progress,
    )  # fmt: skip
    await engine.connect(process.sock)
    try:
        tokenizer = Tokenizer.from_dir(options["tokenizer"] or config.model.path)
        # Made before the weights are read: what is wrong with a certificate or a template should show at once.
        http = HttpServer(server, config, engine, tokenizer, sock, lambda url: _invite(url, config, server))
        process.ready = await _ready(engine, printer)
        if process.ready:
            await http.serve_until_stopped()
        return 0
    finally:
        engine.shutdown()


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


def _exit_on_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, _leave)


async def _ready(engine: AsyncEngine, printer: StartupPrinter) -> bool:
    """Wait for the engine; False if a signal came first. Raises ReplicaDied with the reason if it cannot start."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in SIGNALS:
        loop.add_signal_handler(number, stopped.set)
    if _leave.asked:
        stopped.set()
    start, stop = asyncio.create_task(engine.wait_ready()), asyncio.create_task(stopped.wait())
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
        _exit_on_signals()  # until the HTTP server has handlers of its own
    printer.finish(ready.report)
    return not _leave.asked


def _invite(url: str, config: EngineConfig, server: ServerConfig) -> None:
    images = config.model.vision is not None
    with contextlib.suppress(OSError):  # a full log disk
        print(invitation(url, server.names[0], bool(server.api_keys), images), flush=True)


def _server_config(options: dict[str, Any]) -> ServerConfig:
    """The server's share of the options."""
    plain = (
        "host", "port", "uds", "chat_template", "generation_config", "root_path", "allow_credentials", "ssl_keyfile",
        "ssl_certfile", "ssl_ca_certs", "ssl_cert_reqs", "enable_request_id_headers", "allowed_local_media_path",
    )  # fmt: skip
    lists = ("allowed_origins", "allowed_methods", "allowed_headers", "allowed_media_domains")
    same: dict[str, Any] = {name: options[name] for name in plain}
    media = options["allowed_local_media_path"]
    if media is not None and not Path(media).is_dir():
        raise ConfigError(f"--allowed-local-media-path {media} is no directory")
    same |= {name: tuple(options[name] or ()) for name in lists}
    return ServerConfig(
        model=options["model"] or DEFAULT_MODEL,
        served_model_names=tuple(options["served_model_name"] or ()),
        api_keys=tuple(options["api_key"] or ()),
        max_images_per_prompt=_image_limit(options["limit_mm_per_prompt"]),
        access_log=not options["disable_uvicorn_access_log"],
        log_level=options["uvicorn_log_level"],
        drain_timeout_s=options["shutdown_timeout"],
        **same,
    )


def _image_limit(text: str | None) -> int:
    """--limit-mm-per-prompt '{"image": 4}' (or image=4) -> 4."""
    if text is None:
        return ServerConfig().max_images_per_prompt
    try:
        limits = json.loads(text) if text.startswith("{") else dict([text.split("=")])
        images = int(limits.pop("image"))
    except (ValueError, KeyError, TypeError, AttributeError):
        images, limits = -1, {}
    if images < 0 or limits:
        raise ConfigError('--limit-mm-per-prompt takes the number of images, as {"image": 4}; there is no other kind')
    return images
