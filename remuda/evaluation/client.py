"""Problems as chat requests to an OpenAI-compatible server."""

from __future__ import annotations

import json
from typing import Any

import httpx

from remuda.evaluation.problem import Problem
from remuda.protocol.errors import RemudaError

MAX_REPLY_TOKENS = 400


class ServerAsk:
    """Asks a server, greedily. Thread-safe, as httpx.Client is."""

    def __init__(self, client: httpx.Client, model: str) -> None:
        self.client = client
        self.model = model

    def __call__(self, problem: Problem) -> str:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": problem.messages,
            "temperature": 0,
            "max_tokens": MAX_REPLY_TOKENS,
        }
        if problem.tools:
            body["tools"] = problem.tools
        response = self.client.post("/v1/chat/completions", json=body)
        if response.status_code != 200:
            raise RemudaError(f"the server answered {response.status_code}: {response.text[:300]}")
        message = response.json()["choices"][0]["message"]
        calls = [_as_text(call["function"]) for call in message.get("tool_calls") or ()]
        return "\n".join([*filter(None, [message.get("content")]), *calls])


def _as_text(function: dict[str, str]) -> str:
    """A call as a model would write it. Arguments that are cut stay so: the call is wrong, then."""
    return f'{{"name": {json.dumps(function["name"])}, "parameters": {function["arguments"]}}}'
