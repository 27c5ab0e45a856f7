"""A whole HTTP server (uvicorn, the app, the engine client) in a thread, on top of a fake engine."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvloop

from remuda.config.engine import EngineConfig, SchedulerConfig
from remuda.engine.client import AsyncEngine
from remuda.launch.http_process import serve_until_stopped
from remuda.launch.replica import Replica
from remuda.metrics.serving import ServingMetrics
from remuda.server.config import ServerConfig
from remuda.server.listen import listen
from remuda.server.serve import HttpServer
from tests.server.fake_engine import FakeEngine, Script, echo_prompt
from tests.text import tiny

MODEL = "tiny"


class RunningServer(threading.Thread):
    def __init__(self, folder: Path, script: Script, config: dict[str, Any], max_waiting: int) -> None:
        super().__init__(daemon=True)
        self.engine = FakeEngine(script)  # the one that serves, or is the next to
        self.config = ServerConfig(
            **{"host": "127.0.0.1", "port": 0, "model": MODEL, "access_log": False, "log_level": "warning"} | config
        )
        scheduler = SchedulerConfig(max_num_seqs=4, max_waiting=max_waiting, max_model_len=256)
        self.engine_config = EngineConfig(tiny.model_config(tiny.write(folder)), scheduler=scheduler)
        self.sock = listen(self.config)
        self.port = self.sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=30)
        self.client: AsyncEngine | None = None
        self.ended_with: BaseException | None = None
        self._serving = threading.Event()

    def run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as error:
            self.ended_with = error
        self._serving.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.client = AsyncEngine(self.engine_config.scheduler, ServingMetrics(256))
        replica = Replica(self.engine_config, self._spawn)
        await replica.start(self.client)
        self.server = HttpServer(
            self.config, self.engine_config, self.client, tiny.tokenizer(), self.sock, lambda url: self._serving.set()
        )
        try:
            await serve_until_stopped(self.server, replica, self.client)
        finally:
            await replica.stop()

    def _spawn(self, config: EngineConfig) -> FakeEngine:
        """The first engine, then one after the other; a later one becomes ready when it is told to."""
        if self.engine.ident is not None:
            self.engine = FakeEngine(self.engine.script)
            self.engine.say_ready = False
        self.engine.start()
        return self.engine

    def begin(self) -> RunningServer:
        self.start()
        assert self._serving.wait(20)
        if self.ended_with is not None:
            raise self.ended_with
        return self

    def sigterm(self) -> None:
        """What the signal does (signals reach only the main thread, which is pytest's)."""
        self._loop.call_soon_threadsafe(self.server.stop)

    def wait_idle(self) -> None:
        """Until the server knows of no open sequence."""
        deadline = time.monotonic() + 20
        while self.http.get("/load").json() != {"server_load": 0}:
            assert time.monotonic() < deadline, "the server holds on to a sequence"

    def end(self) -> None:
        self.engine.go.set()
        if self.is_alive():
            self.sigterm()
            self.join(20)
        assert not self.is_alive()
        self.http.close()
        if self.ended_with is not None:
            raise self.ended_with

    def openai(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url + "/v1", **{"api_key": "none", "max_retries": 0} | options)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., RunningServer]]:
    servers: list[RunningServer] = []

    def start(*, script: Script = echo_prompt, max_waiting: int = 100, **config: Any) -> RunningServer:
        servers.append(RunningServer(tmp_path, script, config, max_waiting).begin())
        return servers[-1]

    yield start
    for server in servers:
        server.end()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One server for the tests that do not disturb it."""
    running = RunningServer(tmp_path_factory.mktemp("model"), echo_prompt, {}, 100).begin()
    yield running
    running.end()
