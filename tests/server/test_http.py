"""Everything around generation: errors, access, back-pressure, disconnects, draining, failures, metrics."""

from __future__ import annotations

import contextlib
import json
import random
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import remuda
from remuda.protocol.errors import ConfigError
from remuda.protocol.request import FinishReason, RequestError, RequestOutput, StepOutputs
from remuda.server.config import ServerConfig
from remuda.server.listen import listen
from tests.server.conftest import RunningServer

Serve = Callable[..., RunningServer]
PROMPT = {"model": "tiny", "prompt": "one two three", "max_tokens": 50}


def error_of(answer: httpx.Response, status: int = 400) -> dict[str, Any]:
    """The error of an answer, which must have OpenAI's shape."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return body["error"]  # type: ignore[no-any-return]


BAD_COMPLETIONS: list[tuple[dict[str, Any], str | None]] = [
    ({}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [1, "x"]}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [10**6]}, "prompt"),
    ({"prompt": [2**70]}, "prompt"),
    ({"prompt": ["x"] * 2000}, "prompt"),
    ({"prompt": {"a": 1}}, "prompt"),
    ({"prompt": "x " * 300}, "prompt"),
    ({"prompt": "x" * 1_000_000}, "prompt"),
    ({"prompt": ["x"] * 1000, "n": 100}, "n"),
    ({"prompt": "x", "max_tokens": 256}, "prompt"),
    ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
    ({"prompt": "x", "max_tokens": "many"}, "max_tokens"),
    ({"prompt": "x", "temperature": -1}, "temperature"),
    ({"prompt": "x", "temperature": "hot"}, "temperature"),
    ({"prompt": "x", "top_p": 0}, "top_p"),
    ({"prompt": "x", "n": 0}, "n"),
    ({"prompt": "x", "n": 1000}, "n"),
    ({"prompt": "x", "stop": [""]}, "stop"),
    ({"prompt": "x", "logprobs": 21}, "logprobs"),
    ({"prompt": "x", "logit_bias": {"x": 1}}, "logit_bias"),
    ({"prompt": "x", "logit_bias": {"1": 1000}}, "logit_bias"),
    ({"prompt": "x", "seed": 2**64}, "seed"),
    ({"prompt": "x", "bad_words": [" "]}, "bad_words"),
    ({"prompt": "x", "allowed_token_ids": []}, "allowed_token_ids"),
    ({"prompt": "x", "min_tokens": 17}, "min_tokens"),
    ({"prompt": "x", "best_of": 3}, "best_of"),
    ({"prompt": "x", "priority": 3}, "priority"),
    ({"prompt": "x", "suffix": "y"}, "suffix"),
    ({"prompt": "x", "use_beam_search": True}, "use_beam_search"),
    ({"prompt": "x", "guided_json": {}}, "guided_json"),
    ({"prompt": "x", "response_format": {"type": "json_object"}}, "response_format"),
    ({"prompt": "x", "stream_options": {"include_usage": True}}, "stream_options"),
    ({"prompt": "x", "stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
]
BAD_CHATS: list[tuple[dict[str, Any], str | None]] = [
    ({}, None),
    ({"messages": []}, "messages"),
    ({"messages": "x"}, "messages"),
    ({"messages": [{"role": "user", "content": 7}]}, "messages"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 99}, "logprobs"),
    ({"tools": [{}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"modalities": ["audio"]}, "modalities"),
    ({"chat_template": "x"}, "chat_template"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ({"continue_final_message": True}, "continue_final_message"),
    ({"store": True}, "store"),
]


@pytest.mark.parametrize(("body", "param"), BAD_COMPLETIONS, ids=lambda v: json.dumps(v)[-40:])
def test_bad_completions(server: RunningServer, body: dict[str, Any], param: str | None) -> None:
    error = error_of(server.http.post("/v1/completions", json=body))
    assert error["type"] == "invalid_request_error" and error["param"] == param


@pytest.mark.parametrize(("body", "param"), BAD_CHATS, ids=lambda v: json.dumps(v)[-40:])
def test_bad_chats(server: RunningServer, body: dict[str, Any], param: str | None) -> None:
    if body:
        body = {"messages": [{"role": "user", "content": "x"}]} | body
    assert error_of(server.http.post("/v1/chat/completions", json=body))["param"] == param


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b'{"prompt": "\xff"}', b"[" * 100_000])
def test_bodies_that_are_no_request(server: RunningServer, body: bytes) -> None:
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
        error_of(server.http.post(path, content=body))


def test_asking_for_nothing_special_is_fine(server: RunningServer) -> None:
    body = PROMPT | {
        "best_of": 1, "suffix": None, "response_format": {"type": "text"}, "use_beam_search": False, "user": "me",
        "some_future_field": 1,
    }  # fmt: skip
    assert server.http.post("/v1/completions", json=body).status_code == 200


def test_unknown_paths_methods_and_models(server: RunningServer) -> None:
    assert error_of(server.http.get("/v2/nothing"), 404)["type"] == "not_found_error"
    assert "POST" in error_of(server.http.get("/v1/completions"), 405)["message"]
    error = error_of(server.http.post("/v1/completions", json=PROMPT | {"model": "gpt-9"}), 404)
    assert error["code"] == "model_not_found" and "tiny" in error["message"]
    with pytest.raises(openai.NotFoundError):
        server.openai().models.retrieve("gpt-9")


def test_errors_have_the_clients_classes(server: RunningServer) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.openai().completions.create(model="tiny", prompt="x " * 300)
    assert caught.value.code == "context_length_exceeded"


def test_models_version_and_health(server: RunningServer) -> None:
    models = server.openai().models.list().data
    assert [(m.id, m.object) for m in models] == [("tiny", "model")]
    assert server.openai().models.retrieve("tiny").id == "tiny"
    assert server.http.get("/version").json() == {"version": remuda.__version__}
    assert [server.http.get(path).status_code for path in ("/health", "/ping")] == [200, 200]
    assert server.http.post("/ping").status_code == 200
    assert server.http.get("/load").json() == {"server_load": 0}


def test_served_names_replace_the_model(serve: Serve) -> None:
    server = serve(served_model_names=("first", "second"))
    assert [m.id for m in server.openai().models.list()] == ["first", "second"]
    assert server.http.post("/v1/completions", json=PROMPT | {"model": "second"}).json()["model"] == "second"
    assert server.http.post("/v1/completions", json={"prompt": "x"}).json()["model"] == "first"
    error_of(server.http.post("/v1/completions", json=PROMPT), 404)


def test_request_ids(server: RunningServer) -> None:
    answer = server.http.post("/v1/completions", json=PROMPT, headers={"X-Request-Id": "abc-1"})
    assert answer.headers["x-request-id"] == "abc-1" and answer.json()["id"] == "cmpl-abc-1"
    odd = server.http.post("/v1/completions", json=PROMPT, headers={"X-Request-Id": "<script>"})
    assert len(odd.headers["x-request-id"]) == 32
    assert error_of(server.http.post("/v1/completions", json={}, headers={"X-Request-Id": "abc-1"}))
    with ThreadPoolExecutor(4) as pool:  # the same id at the same time is the client's business, not ours
        same = list(
            pool.map(lambda _: server.http.post("/v1/completions", json=PROMPT | {"request_id": "x"}), range(4))
        )
    assert [answer.json()["choices"][0]["text"][:13] for answer in same] == ["one two three"] * 4


def test_api_keys(serve: Serve) -> None:
    server = serve(api_keys=("secret", "other"))
    with pytest.raises(openai.AuthenticationError):
        server.openai(api_key="wrong").models.list()
    assert error_of(server.http.post("/tokenize", json={"prompt": "x"}), 401)["code"] == "invalid_api_key"
    for key in ("secret", "other"):
        assert server.openai(api_key=key).models.list().data
    assert server.http.get("/health").status_code == 200


def test_cross_origin(serve: Serve) -> None:
    preflight = {"Origin": "http://a.example", "Access-Control-Request-Method": "POST"}
    server = serve(api_keys=("k",))
    answer = server.http.options("/v1/completions", headers=preflight)
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "*"
    assert "POST" in answer.headers["access-control-allow-methods"]
    strict = serve(allowed_origins=("http://a.example",), allow_credentials=True)
    for origin, allowed in (("http://a.example", "http://a.example"), ("http://b.example", None)):
        answer = strict.http.get("/v1/models", headers={"Origin": origin})
        assert answer.headers.get("access-control-allow-origin") == allowed
        answer = strict.http.options("/v1/models", headers=preflight | {"Origin": origin})
        assert answer.headers.get("access-control-allow-origin") == allowed


def test_bodies_are_bounded(serve: Serve) -> None:
    server = serve(max_body_bytes=1000)
    error_of(server.http.post("/v1/completions", json=PROMPT | {"prompt": "x" * 2000}), 413)

    def chunks() -> Any:
        for _ in range(100):
            yield b"x" * 100

    error_of(server.http.post("/v1/completions", content=chunks()), 413)


def test_back_pressure(serve: Serve) -> None:
    server = serve(max_waiting=2)  # and four run
    server.engine.go.clear()
    with ThreadPoolExecutor(6) as pool:
        open_ = [pool.submit(server.http.post, "/v1/completions", json=PROMPT) for _ in range(6)]
        server.engine.wait_for(lambda: len(server.engine.open) == 6)
        assert server.http.get("/load").json() == {"server_load": 6}
        refused = server.http.post("/v1/completions", json=PROMPT)
        assert error_of(refused, 429)["type"] == "rate_limit_error" and int(refused.headers["retry-after"]) >= 1
        with pytest.raises(openai.RateLimitError):
            server.openai().completions.create(model="tiny", prompt="x", stream=True)
        server.engine.go.set()
        assert [answer.result().status_code for answer in open_] == [200] * 6
    assert server.http.post("/v1/completions", json=PROMPT).status_code == 200


def raw_request(server: RunningServer, body: dict[str, Any]) -> socket.socket:
    """A request whose connection the test can cut."""
    data = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(data) + data)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_before_its_first_token(serve: Serve, stream: bool) -> None:
    server = serve()
    server.engine.go.clear()
    connection = raw_request(server, PROMPT | {"stream": stream, "n": 3})
    server.engine.wait_for(lambda: len(server.engine.open) == 3)
    connection.close()
    server.engine.wait_for(lambda: len(server.engine.aborted) == 3)
    assert not server.engine.open
    server.wait_idle()


def test_a_client_that_leaves_in_mid_stream(serve: Serve) -> None:
    server = serve(script=lambda request: [5] * 1000)
    server.engine.go.clear()
    connection = raw_request(server, PROMPT | {"max_tokens": 200, "stream": True, "ignore_eos": True})
    server.engine.wait_for(lambda: len(server.engine.open) == 1)
    server.engine.step()
    assert b"200 OK" in connection.recv(100)
    connection.close()
    server.engine.wait_for(lambda: len(server.engine.aborted) == 1)


def test_many_clients_some_of_whom_leave(serve: Serve) -> None:
    """Afterwards nothing is open, neither here nor in the engine, and whoever stayed got the whole answer."""
    server = serve()

    def client(number: int) -> bool:
        rng = random.Random(number)
        body = PROMPT | {"stream": rng.random() < 0.5, "n": rng.randint(1, 2), "max_tokens": rng.randint(1, 80)}
        if rng.random() < 0.5:
            with raw_request(server, body) as connection:
                if rng.random() < 0.7:
                    connection.recv(rng.randint(1, 2000))
            return True
        answer = httpx.post(server.url + "/v1/completions", json=body, timeout=60)
        return answer.status_code == 200 and (not body["stream"] or answer.text.endswith("data: [DONE]\n\n"))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(client, range(100)))
    server.engine.wait_for(lambda: not server.engine.open)
    server.wait_idle()


def test_a_broken_request_body(serve: Serve) -> None:
    server = serve()
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    connection.close()
    assert server.http.get("/health").status_code == 200


def test_endless_headers_end_the_connection(server: RunningServer) -> None:
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection,
        contextlib.suppress(ConnectionError),
    ):
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 1_000_000)
        assert connection.recv(100) == b""
    assert server.http.get("/health").status_code == 200


def test_sigterm_lets_open_requests_finish(serve: Serve) -> None:
    server = serve()
    server.engine.go.clear()
    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(server.http.post, "/v1/completions", json=PROMPT)
        server.engine.wait_for(lambda: len(server.engine.open) == 1)
        server.sigterm()
        with pytest.raises(OSError):
            while True:  # until the listening socket is closed
                socket.create_connection(("127.0.0.1", server.port), timeout=5).close()
        server.engine.go.set()
        assert answer.result().status_code == 200
    server.join(20)
    assert not server.is_alive() and server.ended_with is None


def test_the_drain_timeout_ends_what_is_left_with_a_503(serve: Serve) -> None:
    server = serve(drain_timeout_s=0.2)
    server.engine.go.clear()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.http.post, "/v1/completions", json=PROMPT)
        server.engine.wait_for(lambda: len(server.engine.open) == 1)
        server.sigterm()
        assert "shutting down" in error_of(answer.result(), 503)["message"]
    server.engine.wait_for(lambda: len(server.engine.aborted) == 1)
    server.join(20)
    assert not server.is_alive()


def half_request(server: RunningServer) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    connection.sendall(b'POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"prompt')
    return connection


def test_half_a_body_does_not_hold_a_connection_for_ever(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remuda.server.http.BODY_GAP_S", 0.05)
    with half_request(server) as connection:
        assert b" 408 " in connection.recv(100)


def test_half_a_body_does_not_outlast_the_drain(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    server = serve(drain_timeout_s=0.2)
    with half_request(server) as connection:
        server.http.get("/health")  # by now the half request is in its handler: it came first
        server.sigterm()
        assert b" 503 " in connection.recv(100)
    server.join(20)
    assert not server.is_alive()
    assert "Traceback" not in caplog.text


def test_one_failed_sequence_leaves_the_others_alone(serve: Serve) -> None:
    server = serve()
    server.engine.go.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(server.http.post, "/v1/completions", json=PROMPT)
        server.engine.wait_for(lambda: len(server.engine.open) == 1)
        second = pool.submit(server.http.post, "/v1/completions", json=PROMPT)
        server.engine.wait_for(lambda: len(server.engine.open) == 2)
        victim = next(iter(server.engine.open))
        del server.engine.open[victim]
        reason = RequestError("too large for the cache", 400, "prompt", "context_length_exceeded")
        server.engine.channel.send(StepOutputs([RequestOutput(victim, [], FinishReason.ERROR, error=reason)]))
        assert error_of(first.result()) == {
            "message": "too large for the cache", "type": "invalid_request_error", "param": "prompt",
            "code": "context_length_exceeded",
        }  # fmt: skip
        server.engine.go.set()
        assert second.result().status_code == 200


def metric(text: str, name: str, **labels: str) -> float:
    lines = [line for line in text.splitlines() if line.startswith(name + "{")]
    return sum(float(line.split()[-1]) for line in lines if all(f'{k}="{v}"' in line for k, v in labels.items()))


def test_metrics(serve: Serve) -> None:
    server = serve()
    for _ in range(3):
        server.http.post("/v1/completions", json=PROMPT | {"max_tokens": 5})
    answer = server.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    text = answer.text
    assert metric(text, "vllm:request_success_total", finished_reason="length", model_name="tiny") == 3
    assert metric(text, "vllm:time_to_first_token_seconds_count") == 3
    assert metric(text, "vllm:inter_token_latency_seconds_count") == 12
    assert metric(text, "vllm:e2e_request_latency_seconds_count") == 3
    assert metric(text, "vllm:request_generation_tokens_sum") == 15
    assert metric(text, "vllm:request_generation_tokens_bucket", le="5.0") == 3
    assert metric(text, "vllm:kv_cache_usage_perc") == 0.25
    assert "process_cpu_seconds_total" in text


def test_a_taken_port_is_a_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = ServerConfig(host="127.0.0.1", port=taken.getsockname()[1])
        with pytest.raises(ConfigError, match="cannot listen on"):
            listen(config)


def test_a_unix_socket_replaces_a_stale_one(tmp_path: Path) -> None:
    config = ServerConfig(uds=str(tmp_path / "socket"))
    with listen(config) as first:
        first.listen()
        with pytest.raises(ConfigError, match="in use"):
            listen(config)
    listen(config).close()


def test_tls(serve: Serve, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--ssl-certfile"):
        serve(ssl_certfile=str(tmp_path / "none"))
    pem = str(Path(__file__).with_name("localhost.pem"))  # made for this test: a key and its own certificate
    server = serve(ssl_keyfile=pem, ssl_certfile=pem)
    answer = httpx.get(f"https://127.0.0.1:{server.port}/health", verify=False)
    assert answer.status_code == 200
