"""Kill -9 under a 2 x 2 replica of the demo model: every answer is what it would have been, and nothing is left."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.e2e.crowd import EXACT, LAYOUT, NAME, Answer, Crowd, late_text, streamed, whole
from tests.e2e.server import Server, free_port, serve
from tests.processes import Proc, descendants, wait_until, wait_until_gone

KILL_AFTER = 120  # tokens of all streams together
RECOVERY_LIMIT_S = 120


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("recovery") / "log", *LAYOUT, *EXACT, *NAME) as running:
        yield running


@pytest.fixture(scope="module")
def stop(server: Server) -> str:
    return late_text(server)


@pytest.fixture(scope="module")
def wanted(server: Server, stop: str) -> list[Answer]:
    return Crowd(server, stop).results()


def victim(server: Server, title: str, other_than: list[Proc]) -> Proc:
    found: list[Proc] = []

    def look() -> bool:
        found[:] = [p for p in descendants(server.process.pid) if title in p.title and p not in other_than]
        return bool(found)

    wait_until(look, RECOVERY_LIMIT_S, f"a process {title}")
    return found[0]


@pytest.mark.parametrize(
    "titles",
    [["remuda: rank 1"], ["remuda: engine"], ["remuda: launcher"], ["remuda: rank 2", "remuda: rank 3"]],
    ids=["a rank", "the engine", "the launcher", "a rank, and another of the next life while it starts"],
)
def test_every_answer_is_as_if_nothing_had_happened(
    server: Server, stop: str, wanted: list[Answer], titles: list[str]
) -> None:
    crowd = Crowd(server, stop)
    wait_until(lambda: crowd.tokens > KILL_AFTER, 60, "tokens")
    family: list[Proc] = []
    for title in titles:
        chosen = victim(server, title, family)
        family += descendants(server.process.pid)
        chosen.kill()
    killed_s, before = time.monotonic(), crowd.tokens
    wait_until(lambda: not server.healthy(), 10, "news of the death")
    wait_until(lambda: crowd.tokens > before + 20, RECOVERY_LIMIT_S, "tokens after the death")
    print(f"tokens again {time.monotonic() - killed_s:.1f} s after the kill")
    assert crowd.results() == wanted
    wait_until_gone(family)
    wait_until(server.healthy, 10, "health")


def test_a_drain_while_recovering_leaves_nothing(tmp_path: Path, tiny_maverick: Path) -> None:
    with serve(tmp_path / "log", str(tiny_maverick), *LAYOUT, "--native-kernels", "off") as server:
        family = descendants(server.process.pid)
        victim(server, "remuda: rank 0", []).kill()
        victim(server, "remuda: launcher", family)
        family += descendants(server.process.pid)
        server.process.terminate()
        assert server.process.wait(20) == 0, server.output
        wait_until_gone(family)
    assert "Traceback" not in server.output


@contextmanager
def node_1(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "remuda", "serve", *arguments, "--node-rank", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_node_that_was_lost_and_comes_back_is_taken_in(tmp_path: Path, tiny_maverick: Path) -> None:
    nodes = ["--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    layout = [str(tiny_maverick), "--pipeline-parallel-size", "2", "--max-model-len", "512", *nodes, *EXACT]
    body = {"prompt": "Hello", "max_tokens": 400, "ignore_eos": True, "temperature": 0, "return_token_ids": True}
    tokens: list[int] = []
    with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        lost = stack.enter_context(node_1(*layout))
        server = stack.enter_context(serve(tmp_path / "log", *layout, "--served-model-name", "tiny"))
        want = whole(server, "/v1/completions", body, tokens.append)
        answer = pool.submit(streamed, server, "/v1/completions", body, tokens.append)
        wait_until(lambda: tokens, 60, "a token")
        lost.kill()
        wait_until(lambda: not server.healthy(), 10, "news of the death")
        assert not answer.done()
        stack.enter_context(node_1(*layout))
        assert answer.result() == want
