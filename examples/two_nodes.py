"""Serve a model cut over two "machines", which here are two commands on one: each holds one pipeline stage.

On two real machines each runs its own of the two commands, with the first one's address in --master-addr.

    python examples/two_nodes.py [MODEL]
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request


def free_ports(count: int) -> int:
    """The first of `count` ports in a row that nobody listens on."""
    for first in range(29600, 60000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return first
        except OSError:
            continue
    raise RuntimeError("no free ports")


def start(node: int, master_port: int, port: int, model: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "remuda", "serve", *model, "--port", str(port), "--max-model-len", "2048"]
    layout = ["--pipeline-parallel-size", "2", "--nnodes", "2", "--node-rank", str(node)]
    where = ["--master-addr", "127.0.0.1", "--master-port", str(master_port)]
    return subprocess.Popen([*command, *layout, *where], stdout=subprocess.DEVNULL)


def wait_healthy(url: str, nodes: list[subprocess.Popen[bytes]]) -> None:
    while all(node.poll() is None for node in nodes):
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise SystemExit("a node ended before the server was ready")


def ask(url: str, question: str) -> str:
    body = json.dumps({"messages": [{"role": "user", "content": question}], "temperature": 0}).encode()
    request = urllib.request.Request(f"{url}/v1/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])


def main(*model: str) -> None:
    port = free_ports(3)
    url = f"http://127.0.0.1:{port}"
    nodes = [start(node, port + 1, port, list(model)) for node in range(2)]
    try:
        wait_healthy(url, nodes)
        print(ask(url, "What is 12 + 30?"))
    finally:
        nodes[0].send_signal(signal.SIGTERM)  # the other one ends with it
        for node in nodes:
            node.wait(60)


if __name__ == "__main__":
    main(*sys.argv[1:])
