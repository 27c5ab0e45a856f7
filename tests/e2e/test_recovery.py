"""Kill -9 under a 2 x 2 replica of the demo model: every answer is what it would have been, and nothing is left."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.e2e.server import Server, free_port, serve
from tests.processes import Proc, descendants, wait_until, wait_until_gone

LAYOUT = ["--tensor-parallel-size", "2", "--pipeline-parallel-size", "2", "--max-model-len", "1024"]
EXACT = ["--dtype", "float32", "--native-kernels", "off"]
TOKENS = 96
KILL_AFTER = 120  # tokens of all streams together
RECOVERY_LIMIT_S = 120

Answer = tuple[dict[int, tuple[list[int], str, Any]], list[int]]  # (token ids, text, reason) per choice; usage


def post(server: Server, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(server.url + path, json.dumps(body).encode(), {"content-type": "application/json"})
    return urllib.request.urlopen(request, timeout=300)


def usage(answer: dict[str, Any]) -> list[int]:
    return [answer["usage"][f"{kind}_tokens"] for kind in ("prompt", "completion", "total")]


def whole(server: Server, path: str, body: dict[str, Any], seen: Callable[[int], None]) -> Answer:
    with post(server, path, body) as response:
        answer = json.load(response)
    choices = {c["index"]: (c["token_ids"], c.get("text") or c["message"]["content"], c["finish_reason"])
               for c in answer["choices"]}  # fmt: skip
    return choices, usage(answer)


def streamed(server: Server, path: str, body: dict[str, Any], seen: Callable[[int], None]) -> Answer:
    ids: dict[int, list[int]] = {}
    texts: dict[int, str] = {}
    reasons: dict[int, Any] = {}
    counted: list[int] = []
    lines: list[bytes] = []
    with post(server, path, body | {"stream": True, "stream_options": {"include_usage": True}}) as response:
        for line in response:
            lines += [line] if line.strip() else []
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            assert "error" not in event, event
            counted = usage(event) if event.get("usage") else counted
            for choice in event["choices"]:
                index = choice["index"]
                new = choice.get("token_ids") or []
                ids.setdefault(index, []).extend(new)
                text = choice["text"] if "text" in choice else choice["delta"].get("content")
                texts[index] = texts.get(index, "") + (text or "")
                reasons[index] = choice["finish_reason"] or reasons.get(index)
                seen(len(new))
    assert lines[-1].strip() == b"data: [DONE]"
    return {index: (ids[index], texts[index], reasons[index]) for index in ids}, counted


def picture() -> str:
    data = io.BytesIO()
    Image.new("RGB", (90, 60), (200, 30, 30)).save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def calls(stop: str) -> list[tuple[Callable[..., Answer], str, dict[str, Any]]]:
    """Eight of every kind. `stop` occurs in what the first of them says."""
    text = {"prompt": "Once upon a time there was", "max_tokens": TOKENS, "return_token_ids": True, "temperature": 0}
    seeded = text | {"temperature": 1.0, "seed": 7}
    ask = {"max_tokens": TOKENS, "return_token_ids": True, "ignore_eos": True}
    look = [{"type": "image_url", "image_url": {"url": picture()}}, {"type": "text", "text": "What is this?"}]
    completions, chat = "/v1/completions", "/v1/chat/completions"
    return [
        (streamed, completions, text | {"ignore_eos": True}),
        (streamed, completions, seeded | {"ignore_eos": True}),
        (streamed, completions, seeded | {"ignore_eos": True, "n": 2, "top_p": 0.9, "seed": 11}),
        (streamed, completions, text | {"ignore_eos": True, "stop": [stop]}),
        (whole, completions, text | {"ignore_eos": True, "logprobs": 2, "prompt": "The sum of 17 and 25"}),
        (whole, completions, seeded | {"n": 2, "seed": 3, "repetition_penalty": 1.2}),
        (streamed, chat, ask | {"messages": [{"role": "user", "content": "Count to 90."}], "temperature": 0}),
        (streamed, chat, ask | {"messages": [{"role": "user", "content": look}], "temperature": 0.7, "seed": 5}),
    ]


class Crowd:
    """The eight calls, all at once."""

    def __init__(self, server: Server, stop: str) -> None:
        self.tokens = 0
        self._pool = ThreadPoolExecutor(8)
        self._answers: list[Future[Answer]] = [
            self._pool.submit(how, server, path, body, self._seen) for how, path, body in calls(stop)
        ]

    def _seen(self, tokens: int) -> None:
        self.tokens += tokens

    def results(self) -> list[Answer]:
        with self._pool:
            return [answer.result() for answer in self._answers]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("recovery") / "log", *LAYOUT, *EXACT, "--served-model-name", "demo") as running:
        yield running


@pytest.fixture(scope="module")
def stop(server: Server) -> str:
    """A text of several tokens that the greedy call says after three quarters of its way."""
    how, path, body = calls("no such text")[0]
    ((_, text, _),) = how(server, path, body, lambda tokens: None)[0].values()
    return text[len(text) * 3 // 4 :][:9]


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
