"""Where the engine waits for its ranks: a unix socket on one host, TCP across nodes."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from remuda.protocol.errors import ConfigError, RemudaError

_RETRY_S = 0.1


@dataclass(frozen=True)
class Address:
    """`unix:PATH` or `tcp:HOST:PORT`."""

    text: str

    @classmethod
    def tcp(cls, host: str, port: int) -> Address:
        return cls(f"tcp:{host}:{port}")

    @property
    def is_unix(self) -> bool:
        return self.text.startswith("unix:")

    @property
    def path(self) -> str:
        return self.text.removeprefix("unix:")

    @property
    def host_port(self) -> tuple[str, int]:
        host, port = self.text.removeprefix("tcp:").rsplit(":", 1)
        return host, int(port)

    def connect(self, timeout_s: float) -> socket.socket:
        """A blocking socket; retried until the engine listens. Raises RemudaError after `timeout_s`.

        On its own host the engine listens before it starts anybody: who is refused there has outlived it.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return self._connect_once(max(0.1, deadline - time.monotonic()))
            except OSError as error:
                if self.is_unix:
                    raise RemudaError(f"the engine that listened at {self.path} is gone ({error})") from error
                if time.monotonic() + _RETRY_S > deadline:
                    raise RemudaError(
                        f"could not reach the engine at {self.text.split(':', 1)[1]} within {timeout_s:.0f} s "
                        f"({error}). Check --master-addr and --master-port, and that node 0 is up and reachable"
                    ) from error
                time.sleep(_RETRY_S)

    def _connect_once(self, timeout_s: float) -> socket.socket:
        if self.is_unix:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(self.path)
            except OSError:
                sock.close()
                raise
            return sock
        sock = socket.create_connection(self.host_port, timeout_s)
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock


def die_with_peer(sock: socket.socket) -> None:
    """Have the kernel report a vanished host (power, cable) within 5 s. For channels that are never long unread."""
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 4000)


class Listener:
    """The engine's listening socket: private to this user on one host, on `master_addr` across nodes."""

    def __init__(self, master: tuple[str, int] | None) -> None:
        self._directory: str | None = None
        if master is None:
            self._directory = tempfile.mkdtemp(prefix=f"remuda-{os.getpid()}-")
            self.address = Address(f"unix:{Path(self._directory) / 'engine.sock'}")
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.bind(self.address.path)
            self.sock.listen(256)
        else:
            self.address = Address.tcp(*master)
            self.sock = listen_tcp(*master)
        self.sock.setblocking(False)

    def close(self) -> None:
        self.sock.close()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None


def remove_left_by(pid: int) -> None:
    """Remove what a process that was killed while it listened could not remove itself."""
    for directory in Path(tempfile.gettempdir()).glob(f"remuda-{pid}-*"):
        shutil.rmtree(directory, ignore_errors=True)


def listen_tcp(host: str, port: int) -> socket.socket:
    """Raises ConfigError if the address is not this machine's or the port is taken."""
    try:
        return socket.create_server((host, port), backlog=256)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port} ({error.strerror or error}): --master-addr must be an address of node 0, "
            f"and --master-port and the port after it must be free there"
        ) from error
