"""`remuda serve` as a user runs it: a real process on a free port, its ready state, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

START_LIMIT_S = 120


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def descendants(pid: int) -> dict[int, str]:
    """Process ids below `pid` -> their titles."""
    found: dict[int, str] = {}
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in map(int, task.read_text().split()):
                found[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                found |= descendants(child)
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, limit_s: float, what: str) -> float:
    """Poll until true; returns the seconds it took, fails after `limit_s`."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < limit_s, f"{what}: not within {limit_s} s"
        time.sleep(0.02)
    return time.monotonic() - start


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

    def ranks(self) -> dict[int, str]:
        return {pid: title for pid, title in descendants(self.process.pid).items() if "remuda: rank" in title}


@contextmanager
def serve(log: Path, *arguments: str) -> Iterator[Server]:
    """Start, wait until ready, and stop with SIGTERM; afterwards no process of it may be left."""
    port = free_port()
    command = [sys.executable, "-m", "remuda", "serve", *arguments, "--port", str(port), "--host", "127.0.0.1"]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, text=True, env=os.environ.copy())
    server = Server(process, port, log)
    family: set[int] = set()
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
            wait_until(lambda: not any(map(alive, family)), 5, "processes left behind")
        finally:
            for pid in [process.pid, *family]:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
