"""Whatever a body holds, the answer is a result or a 4xx in OpenAI's shape: never a 500, never a server that stops."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remuda.server.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from tests.server.conftest import RunningServer

PATHS = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
GOOD: dict[str, Any] = {
    "/v1/completions": {"prompt": "one two", "max_tokens": 3},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3},
    "/tokenize": {"prompt": "x"},
    "/detokenize": {"tokens": [1]},
}
numbers = st.integers(-5, 30) | st.integers(-(2**70), 2**70) | st.floats(allow_nan=True, allow_infinity=True)
texts = st.text(max_size=8) | st.sampled_from(
    ["<|image|>", "\u0000", "auto", "user", "assistant", "text", "data:,x", "{{"]
)
leaves = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "image_url", "url", "name", "1", "-1"]), inner
        )
    ),
    max_leaves=8,
)

# What some field takes: half of the draws, so that many bodies get past the types.
plausible = st.sampled_from([0, 1, 2, 0.5, True, False, "a", ["a", "b"], [1, 2], {"5": 1}, {"include_usage": True}])


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, bytes]:
    """A good body with some of its known fields replaced by anything at all."""
    path = draw(st.sampled_from(sorted(PATHS)))
    fields = draw(st.lists(st.sampled_from(PATHS[path].__struct_fields__), max_size=2, unique=True))
    body = GOOD[path] | {name: draw(plausible | values) for name in fields if name != "model"}
    text = json.dumps(body)
    if draw(st.booleans()):  # lone surrogates, which Python's JSON would write but UTF-8 cannot hold
        text = text.replace("user", "\\ud800", 1).replace("two", "\\udfff", 1)
    return path, text.encode()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bodies())
def test_no_body_makes_the_server_fail(server: RunningServer, request_: tuple[str, bytes]) -> None:
    path, body = request_
    answer = server.http.post(path, content=body)
    assert answer.status_code in (200, 400, 404, 413, 429), (answer.status_code, answer.text, body)
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]


@pytest.fixture(scope="module", autouse=True)
def serves_on(server: RunningServer) -> Any:
    """After all of that, an ordinary request is answered and nothing is left open."""
    yield
    assert server.http.post("/v1/completions", json=GOOD["/v1/completions"]).status_code == 200
    server.wait_idle()
    assert not server.engine.open
