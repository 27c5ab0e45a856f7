"""The engine process, seen from the HTTP process that starts it: spawn, watch, end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys

import msgspec

from remuda.config.engine import EngineConfig

STOP_LIMIT_S = 10.0  # for the ranks to end in order
START_STOP_LIMIT_S = 1.0  # during start-up there is nothing to lose, and it may wait for something slow


class EngineProcess:
    """A child that runs the engine and its ranks. `sock` is this side of the channel to it.

    It has a process group of its own, so that Ctrl-C in a terminal reaches only us and we can drain first. When we
    vanish without a word, the closed channel tells it to end.
    """

    def __init__(self, config: EngineConfig, backend: str) -> None:
        self.sock, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "remuda.cli.engine_main", str(theirs.fileno()), backend]
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.PIPE, process_group=0
            )  # fmt: skip
        self.ready = False  # set when start-up is complete
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(msgspec.msgpack.encode(config))

    @property
    def pid(self) -> int:
        return self._process.pid

    def how_it_ended(self) -> str:
        """For the message that clients get when the connection broke."""
        try:
            code = self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            return "it closed its connection"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def stop(self) -> None:
        """Wait for it to end (it has been told to, or its channel is closed); kill its process group if it does not."""
        self.sock.close()
        try:
            self._process.wait(STOP_LIMIT_S if self.ready else START_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
