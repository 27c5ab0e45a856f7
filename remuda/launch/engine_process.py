"""The engine process, seen from the process that starts it: spawn, watch, end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys

import msgspec

from remuda.config.engine import EngineConfig
from remuda.executor.address import remove_left_by
from remuda.executor.supervision import signal_name


class EngineProcess:
    """A child that runs the engine core and starts the ranks. `sock` is this side of the channel to it.

    It has a process group of its own, so that Ctrl-C in a terminal reaches only us and we can drain first. When we
    vanish without a word, the closed channel tells it to end.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.sock, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "remuda.launch.engine_main", str(theirs.fileno())]
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.PIPE, process_group=0
            )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(msgspec.msgpack.encode(config))

    def how_it_ended(self) -> str:
        """For the message that clients get when the connection broke. Waits a moment for the process to be gone."""
        try:
            code = self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            return "it closed its connection"
        return f"killed by {signal_name(-code)}" if code < 0 else f"exit code {code}"

    def stop(self, limit_s: float) -> None:
        """Close the channel, which tells it to end, and wait; kill its process group if it takes longer."""
        self.sock.close()
        try:
            self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        remove_left_by(self._process.pid)
