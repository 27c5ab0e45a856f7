"""The listening socket: bound before anything slow happens, so kept apart from the server that uses it."""

from __future__ import annotations

import os
import socket
import stat

from remuda.protocol.errors import ConfigError
from remuda.server.config import ServerConfig


def listen(config: ServerConfig) -> socket.socket:
    """Bind early: a port that is taken should fail before the weights are read. Raises ConfigError."""
    try:
        if config.uds is not None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            _remove_stale(config.uds)
            sock.bind(config.uds)
        else:
            family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((config.host, config.port))
    except (OSError, OverflowError) as error:
        where = config.uds or f"{config.host}:{config.port}"
        raise ConfigError(f"cannot listen on {where}: {error}. Choose another --host or --port.") from error
    sock.set_inheritable(True)
    return sock


def _remove_stale(path: str) -> None:
    """Unlink a socket file that a server which is gone has left; one that still answers stays."""
    if not (os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode)):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(path) != 0:
            os.unlink(path)


def address(config: ServerConfig, sock: socket.socket) -> str:
    """The URL that a local client can use."""
    if config.uds is not None:
        return f"unix:{config.uds}"
    host, port = sock.getsockname()[:2]
    scheme = "https" if config.ssl_certfile else "http"
    host = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, host)
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
