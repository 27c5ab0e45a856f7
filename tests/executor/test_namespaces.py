"""Two nodes that are really apart: network namespaces joined by a veth pair. Needs root and iproute2, as CI has."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator

import msgspec
import pytest

from remuda.config.engine import EngineConfig
from tests.executor.replica import config
from tests.executor.test_nodes import AGENT
from tests.processes import descendants, wait_until_gone

ENGINE = """
    import sys
    import msgspec
    from remuda.config.engine import EngineConfig
    from remuda.executor.multiproc import MultiprocExecutor
    from remuda.protocol.errors import RemudaError
    from tests.executor.replica import decode, prefill, wait_for
    executor = MultiprocExecutor(msgspec.json.decode(sys.stdin.buffer.read(), type=EngineConfig))
    try:
        executor.start(lambda _: None)
        executor.submit(prefill())
        for step in range(1, 20):
            executor.submit(decode(step))
        assert [result.tokens for result in wait_for(executor, 20, 60)] == [[1]] * 20
        print("served", flush=True)
        wait_for(executor, 1, 60)
    except RemudaError as error:
        print(error.message, flush=True)
    finally:
        executor.shutdown()
"""
FIRST, SECOND = "10.213.77.1", "10.213.77.2"


def ip(*command: str) -> None:
    subprocess.run(["ip", *command], check=True, capture_output=True)


def namespaces_work() -> bool:
    if os.geteuid() or shutil.which("ip") is None:
        return False
    name = f"remuda-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    runs = made and subprocess.run(["ip", "netns", "exec", name, "true"], capture_output=True).returncode == 0
    if made:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return runs


class Nodes:
    """Two namespaces, `first` and `second`, each with a loopback device and its end of a veth pair."""

    def __init__(self) -> None:
        self.first, self.second = f"remuda-a-{os.getpid()}", f"remuda-b-{os.getpid()}"
        for name in (self.first, self.second):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", self.first, "link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns", self.second)
        for name, address in ((self.first, FIRST), (self.second, SECOND)):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "veth0")
            ip("-n", name, "link", "set", "veth0", "up")

    def run(self, name: str, code: str, setup: EngineConfig, node: int) -> subprocess.Popen[bytes]:
        parallel = msgspec.structs.replace(setup.parallel, node_rank=node)
        command = ["ip", "netns", "exec", name, sys.executable, "-c", textwrap.dedent(code)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(msgspec.structs.replace(setup, parallel=parallel)))
        process.stdin.close()
        process.stdin = None
        return process

    def close(self) -> None:
        for name in (self.first, self.second):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


if namespaces_work():  # elsewhere these tests do not exist

    @pytest.fixture
    def nodes() -> Iterator[Nodes]:
        pair = Nodes()
        yield pair
        pair.close()

    def setup(tp: int) -> EngineConfig:
        return config(tp, 2, nnodes=2, master_addr=FIRST, master_port=29600, distributed_timeout_s=60.0)

    @pytest.mark.parametrize("tp", [2, 8])
    def test_two_stages_on_two_nodes(nodes: Nodes, tp: int) -> None:
        second = nodes.run(nodes.second, AGENT, setup(tp), 1)
        first = nodes.run(nodes.first, ENGINE, setup(tp), 0)
        assert first.stdout is not None
        try:
            line = first.stdout.readline()
            assert line == b"served\n", line + first.stdout.read()
            ranks = [proc for proc in descendants(second.pid) if "rank" in proc.title]
            assert len(ranks) == tp
        finally:
            family = [*descendants(first.pid), *descendants(second.pid)]
            os.kill(first.pid, signal.SIGKILL)
            first.communicate()
            second.communicate(timeout=5)
        wait_until_gone(family)

    def test_a_pulled_cable_is_noticed_on_both_sides(nodes: Nodes) -> None:
        second = nodes.run(nodes.second, AGENT, setup(1), 1)
        first = nodes.run(nodes.first, ENGINE, setup(1), 0)
        assert first.stdout is not None
        assert first.stdout.readline() == b"served\n"
        family = [*descendants(first.pid), *descendants(second.pid)]
        begin = time.monotonic()
        ip("-n", nodes.first, "link", "set", "veth0", "down")
        assert b"node 1 is gone" in first.stdout.readline()
        assert time.monotonic() - begin < 7.0  # five, and what a busy machine adds
        first.communicate(timeout=5)
        second.communicate(timeout=5)
        wait_until_gone(family, 1.0)
