"""Several nodes: here all on the loopback device; over real network namespaces where the machine allows it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import msgspec
import pytest

from remuda.config.engine import EngineConfig
from remuda.executor.multiproc import MultiprocExecutor
from remuda.protocol.errors import RemudaError, ReplicaDied
from tests.executor.replica import config, decode, prefill, wait_for
from tests.processes import descendants, titled, wait_until_gone

AGENT = """
    import msgspec, sys
    from remuda.config.engine import EngineConfig
    from remuda.executor.nodes import run_node
    from remuda.protocol.errors import RemudaError
    try:
        run_node(msgspec.json.decode(sys.stdin.buffer.read(), type=EngineConfig))
    except RemudaError as error:
        sys.exit(error.message)
"""


def free_port() -> int:
    """A port such that it and the next one are free."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port = first.getsockname()[1]
            try:
                with socket.create_server(("127.0.0.1", port + 1)):
                    return port
            except OSError:
                continue


def agent(config: EngineConfig, node: int) -> subprocess.Popen[bytes]:
    parallel = msgspec.structs.replace(config.parallel, node_rank=node)
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(AGENT)], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(msgspec.structs.replace(config, parallel=parallel)))
    process.stdin.close()
    process.stdin = None
    return process


def two_nodes(tp: int = 2, **more: object) -> EngineConfig:
    return config(tp, 2, nnodes=2, master_port=free_port(), distributed_timeout_s=30.0, **more)  # type: ignore[arg-type]


def test_two_nodes_serve_and_end_together() -> None:
    setup = two_nodes()
    second = agent(setup, 1)  # before the first: it keeps trying
    executor = MultiprocExecutor(setup)
    report = executor.start(lambda _: None)
    assert [memory.rank for memory in report.memory] == [0, 1, 2, 3]
    ranks = descendants(second.pid)
    assert {proc.title for proc in ranks} == {"remuda: rank 2 tp0 pp1", "remuda: rank 3 tp1 pp1"}
    executor.submit(prefill())
    for step in range(1, 10):
        executor.submit(decode(step))
    assert [result.tokens for result in wait_for(executor, 10)] == [[1]] * 10
    executor.shutdown()
    assert second.communicate(timeout=5) and second.returncode == 0
    wait_until_gone(ranks, 1.0)


@pytest.mark.parametrize("whole_node", [False, True], ids=["a rank there", "its agent"])
def test_a_loss_on_the_second_node_is_named(whole_node: bool) -> None:
    setup = two_nodes(tp=1, base_ms=20.0)
    second = agent(setup, 1)
    executor = MultiprocExecutor(setup)
    try:
        executor.start(lambda _: None)
        executor.submit(prefill())
        for step in range(1, 100):
            executor.submit(decode(step))
        family = [*descendants(os.getpid()), *descendants(second.pid)]
        begin = time.monotonic()
        os.kill(second.pid if whole_node else titled("remuda: rank 1 tp0 pp1").pid, signal.SIGKILL)
        with pytest.raises(ReplicaDied, match="node 1") as caught:
            wait_for(executor, 1000)
        assert caught.value.node == 1
        second.communicate(timeout=5)
        wait_until_gone(family, 5.0 - (time.monotonic() - begin))
    finally:
        executor.shutdown()
        second.kill()
        second.communicate()


def test_ranks_of_the_second_node_end_with_the_engine() -> None:
    setup = two_nodes(tp=1)
    second = agent(setup, 1)
    executor = MultiprocExecutor(setup)
    executor.start(lambda _: None)
    family = descendants(second.pid)
    assert executor._peers is not None
    executor._peers.close()  # as if this process had died
    second.communicate(timeout=5)
    wait_until_gone(family)
    executor.shutdown()


def test_a_missing_node_is_named_with_what_to_run() -> None:
    parallel = msgspec.structs.replace(two_nodes().parallel, distributed_timeout_s=1.0)
    setup = msgspec.structs.replace(two_nodes(), parallel=parallel)
    with pytest.raises(RemudaError, match=r"node (0, )?1 of 2 did not join within 1 s.*--node-rank"):
        MultiprocExecutor(setup).start(lambda _: None)


def test_an_agent_without_engine_gives_up_with_advice() -> None:
    setup = two_nodes()
    parallel = msgspec.structs.replace(setup.parallel, distributed_timeout_s=0.5)
    second = agent(msgspec.structs.replace(setup, parallel=parallel), 1)
    _, errors = second.communicate(timeout=20)
    assert second.returncode == 1 and b"--master-addr" in errors


def test_another_model_on_the_second_node_is_refused() -> None:
    setup = two_nodes()
    parallel = msgspec.structs.replace(setup.parallel, distributed_timeout_s=3.0)
    setup = msgspec.structs.replace(setup, parallel=parallel)
    other = msgspec.structs.replace(setup, model=msgspec.structs.replace(setup.model, vocab_size=60))
    second = agent(other, 1)
    with pytest.raises(RemudaError, match="node 1"):
        MultiprocExecutor(setup).start(lambda _: None)
    _, errors = second.communicate(timeout=20)
    assert second.returncode == 1 and b"is not the one that node 0 serves" in errors


def test_strangers_are_turned_away() -> None:
    """Rubbish on the engine's port, and a rank that nobody expects, do not stop the start."""
    setup = two_nodes(tp=1)
    executor = MultiprocExecutor(setup)
    second = agent(setup, 1)
    address = ("127.0.0.1", setup.parallel.master_port)
    rubbish: list[socket.socket] = []

    def intrude(_: object) -> None:
        if not rubbish:
            rubbish.append(socket.create_connection(address))
            rubbish[0].sendall(b"GET / HTTP/1.0\r\n\r\n" * 10)

    try:
        executor.start(intrude)
        executor.submit(prefill())
        assert wait_for(executor, 1)[0].tokens == [1]
        with pytest.raises(ConnectionRefusedError):  # ready: nobody else may come
            socket.create_connection(address)
    finally:
        executor.shutdown()
        second.communicate(timeout=5)
        for sock in rubbish:
            sock.close()
