"""Start a server, wait until it answers, ask it one thing, stop it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

START_LIMIT_S = 600.0


@dataclass
class RunningServer:
    pid: int
    url: str
    start_to_first_token_s: float  # from the start of the process to the first token of a first request


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def serving(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[RunningServer]:
    """`{port}` in the command becomes a free port. Raises RuntimeError with its output if it does not start."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as log:
        started = time.monotonic()
        process = subprocess.Popen(
            [word.replace("{port}", str(port)) for word in command],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=os.environ | dict(environment or {}),
        )  # fmt: skip
        try:
            while not _answers(url):
                if process.poll() is not None or time.monotonic() - started > START_LIMIT_S:
                    log.seek(0)
                    raise RuntimeError(f"{' '.join(command)} did not start:\n{log.read()[-3000:]}")
                time.sleep(0.02)
            _first_token(url)
            yield RunningServer(process.pid, url, time.monotonic() - started)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5):
            return True
    except OSError:
        return False


def _first_token(url: str) -> None:
    with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as response:
        model = json.load(response)["data"][0]["id"]
    body = json.dumps({"model": model, "prompt": "import os", "max_tokens": 1, "temperature": 0}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as response:
        response.read()
