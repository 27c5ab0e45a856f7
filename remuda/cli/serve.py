"""`remuda serve`: reads the flags, then is the HTTP process of a replica, or another node of it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from setproctitle import setproctitle

from remuda import __version__
from remuda.cli.startup import StartupPrinter, invitation
from remuda.config.arguments import ENGINE_FLAGS, SERVER_FLAGS
from remuda.config.engine import EngineConfig
from remuda.config.parser import FlagParser
from remuda.hub.source import MODEL_HELP
from remuda.launch import http_process
from remuda.launch.resolve import describe, engine_config
from remuda.launch.server_options import server_config
from remuda.protocol.request import EngineReady
from remuda.server.config import ServerConfig


def run(argv: Sequence[str]) -> int:
    parser = FlagParser(
        "remuda serve",
        "Answer OpenAI-compatible HTTP requests with a model.",
        (*SERVER_FLAGS, *ENGINE_FLAGS),
        operand="[MODEL]",
    )
    parser.add_argument("model", nargs="?", help=MODEL_HELP)
    options = parser.read(argv)
    config = engine_config(options)
    printer = StartupPrinter(config.parallel.world_size)
    printer.line(f"remuda {__version__}: {config.model.path}\n  {describe(config)}")
    if config.parallel.node_rank > 0:
        return _join(config, printer)
    server = server_config(options, config.model.architecture)
    setproctitle("remuda: http")
    http_process.run(config, server, _Terminal(config, server, printer))
    return 0


def _join(config: EngineConfig, printer: StartupPrinter) -> int:
    """Be a node that answers no HTTP: run its ranks until node 0 ends."""
    from remuda.executor.nodes import run_node

    parallel = config.parallel
    printer.line(f"  node {parallel.node_rank}: joining {parallel.master_addr}:{parallel.master_port}")
    run_node(config)
    printer.line(f"  node {parallel.node_rank}: the engine on node 0 has ended")
    return 0


class _Terminal:
    """Shows the operator how start-up goes, then whom to ask and how."""

    def __init__(self, config: EngineConfig, server: ServerConfig, printer: StartupPrinter) -> None:
        self._images = config.model.vision is not None
        self._server = server
        self._printer = printer
        self.progress = printer.progress

    def ready(self, ready: EngineReady) -> None:
        self._printer.finish(ready.report)

    def serving(self, url: str) -> None:
        with contextlib.suppress(OSError):  # a full log disk
            print(invitation(url, self._server.names[0], bool(self._server.api_keys), self._images), flush=True)
