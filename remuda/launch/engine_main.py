"""Entry point of the engine process: `engine_main FD`, with its EngineConfig on standard input."""

from __future__ import annotations

import signal
import socket
import sys

import msgspec
from setproctitle import setproctitle

from remuda.config.engine import EngineConfig
from remuda.engine.process import run_engine
from remuda.launch.executors import make_executor


def main() -> None:
    setproctitle("remuda: engine")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the HTTP process drains first, then tells us
    config = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=EngineConfig)
    sys.stdin.close()
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.set_inheritable(False)
    run_engine(config, make_executor(config), sock)


if __name__ == "__main__":
    main()
