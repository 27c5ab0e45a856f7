"""What HTTP clients see while the replica dies and comes back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.server.conftest import RunningServer

Serve = Callable[..., RunningServer]
PROMPT = {"model": "tiny", "prompt": "one two three", "max_tokens": 12}


def kill_engine(server: RunningServer) -> None:
    """Returns when the successor has been started, which is not ready yet."""
    dying = server.engine
    dying.die("rank 2 died")
    deadline = time.monotonic() + 20
    while server.engine is dying or server.http.get("/health").status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def complete(server: RunningServer, body: dict[str, Any]) -> dict[str, Any]:
    answer = server.http.post("/v1/completions", json=body).json()
    return {"choices": answer["choices"], "usage": answer["usage"]}


def stream(server: RunningServer, body: dict[str, Any]) -> list[str]:
    with server.http.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
        assert answer.status_code == 200
        return [line for line in answer.iter_lines() if line]


def test_answers_are_as_if_nothing_had_happened(serve: Serve) -> None:
    server = serve()
    bodies: list[dict[str, Any]] = [
        PROMPT, PROMPT | {"n": 2, "logprobs": 2}, PROMPT | {"stop": ["tw"]}, PROMPT | {"prompt_logprobs": 1},
    ]  # fmt: skip
    wanted = [complete(server, body) for body in bodies]
    server.engine.go.clear()
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(complete, server, body) for body in bodies]
        server.engine.wait_for(lambda: len(server.engine.open) == 5)
        server.engine.step()
        server.engine.step()
        kill_engine(server)
        server.engine.become_ready()
        assert [answer.result() for answer in answers] == wanted


def test_a_stream_stays_open_with_comments_and_goes_on(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remuda.engine.client.KEEP_ALIVE_S", 0.01)
    server = serve(script=lambda request: list(range(60, 100)))
    server.engine.go.clear()
    with ThreadPoolExecutor(1) as pool:
        client = pool.submit(stream, server, PROMPT | {"return_token_ids": True, "ignore_eos": True})
        server.engine.wait_for(lambda: len(server.engine.open) == 1)
        for _ in range(3):
            server.engine.step()
        kill_engine(server)
        time.sleep(0.1)
        server.engine.become_ready()
        lines = client.result()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    tokens = [token for event in events for choice in event["choices"] for token in choice["token_ids"]]
    assert tokens == list(range(60, 72)) and lines[-1] == "data: [DONE]"
    assert ": recovering" in lines and all(line.startswith((": recovering", "data: ")) for line in lines)


def test_while_recovering_health_says_so_and_the_bounded_queue_takes_new_requests(serve: Serve) -> None:
    server = serve(max_waiting=1)
    kill_engine(server)
    health = server.http.get("/health")
    assert health.status_code == 503 and health.headers["retry-after"]
    assert health.json()["error"]["code"] == "recovering" and "rank 2 died" in health.json()["error"]["message"]
    with ThreadPoolExecutor(1) as pool:
        waiting: Future[dict[str, Any]] = pool.submit(complete, server, PROMPT | {"n": 5})
        while server.http.get("/load").json() != {"server_load": 5}:
            time.sleep(0.001)
        refused = server.http.post("/v1/completions", json=PROMPT)
        assert refused.status_code == 503 and refused.headers["retry-after"]
        metrics = server.http.get("/metrics").text
        assert 'remuda:recoveries_total{cause="rank",engine="0",model_name="tiny"} 1.0' in metrics
        server.engine.become_ready()
        assert len(waiting.result()["choices"]) == 5
    assert server.http.get("/health").status_code == 200


def test_a_drain_while_recovering_ends_in_time(serve: Serve) -> None:
    server = serve(drain_timeout_s=0.2)
    server.engine.go.clear()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.http.post, "/v1/completions", json=PROMPT)
        server.engine.wait_for(lambda: len(server.engine.open) == 1)
        kill_engine(server)
        server.sigterm()
        assert answer.result().status_code == 503 and "shutting down" in answer.result().text
    server.join(20)
    assert not server.is_alive()


def test_clients_leave_while_recovering(serve: Serve) -> None:
    server = serve()
    kill_engine(server)
    with server.openai(timeout=0.1) as client, pytest.raises(Exception, match="timed out"):
        client.completions.create(model="tiny", prompt="x")
    server.wait_idle()
    server.engine.become_ready()
    assert complete(server, PROMPT)["usage"]["completion_tokens"] == 12
    assert len(server.engine.requests) == 1
