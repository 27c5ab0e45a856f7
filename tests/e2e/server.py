"""`remuda serve` as a user runs it: a real process on a free port, its ready state, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.processes import Proc, descendants, wait_until, wait_until_gone

START_LIMIT_S = 120


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@dataclass
class Server:
    process: subprocess.Popen[str]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def output(self) -> str:
        return self.log.read_text()

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def ranks(self) -> list[Proc]:
        return [proc for proc in descendants(self.process.pid) if "remuda: rank" in proc.title]


@contextmanager
def serve(log: Path, *arguments: str) -> Iterator[Server]:
    """Start, wait until ready, and stop with SIGTERM; afterwards no process of it may be left."""
    port = free_port()
    command = [sys.executable, "-m", "remuda", "serve", *arguments, "--port", str(port), "--host", "127.0.0.1"]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, text=True, env=os.environ.copy())
    server = Server(process, port, log)
    family: set[Proc] = set()
    try:
        wait_until(lambda: server.healthy() or process.poll() is not None, START_LIMIT_S, "server start")
        assert process.poll() is None, f"server exited with {process.returncode}:\n{server.output}"
        family = set(descendants(process.pid))
        yield server
    finally:
        family |= set(descendants(process.pid))
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
            wait_until_gone(family)
        finally:
            process.kill()
            for proc in family:
                proc.kill()
