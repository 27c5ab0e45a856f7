"""A `remuda serve` of our own on a free port, for commands that need a server for a moment."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from remuda.protocol.errors import RemudaError


@contextmanager
def serving(arguments: Sequence[str]) -> Iterator[str]:
    """Yields the base URL once the server is ready; its start-up is shown on standard error."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "remuda", "serve", *arguments, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--disable-uvicorn-access-log", "--uvicorn-log-level", "warning"]
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(command, stdin=quiet, stdout=quiet, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_healthy(url, server)
        yield url
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_healthy(url: str, server: subprocess.Popen[bytes]) -> None:
    """The server has limits of its own; what may take longer, a download, shows its progress."""
    while server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise RemudaError(f"the local server ended with exit code {server.returncode} before it was ready")
