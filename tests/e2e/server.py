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
from dataclasses import dataclass, field
from pathlib import Path

START_LIMIT_S = 120


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@dataclass(frozen=True)
class Proc:
    """A process as it was seen: the start time tells it from a later one with the same id."""

    pid: int
    started: str
    title: str = field(compare=False)

    def alive(self) -> bool:
        fields = _stat(self.pid)
        return fields is not None and fields[0] != "Z" and fields[19] == self.started

    def kill(self) -> None:
        if self.alive():
            os.kill(self.pid, signal.SIGKILL)


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on, or None."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def descendants(pid: int) -> list[Proc]:
    """Live processes below `pid`."""
    found: list[Proc] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in map(int, task.read_text().split()):
                fields = _stat(child)
                title = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                found += [Proc(child, fields[19], title)] if fields else []
                found += descendants(child)
    return found


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
            wait_until(lambda: not any(proc.alive() for proc in family), 5, "processes left behind")
        finally:
            process.kill()
            for proc in family:
                proc.kill()
