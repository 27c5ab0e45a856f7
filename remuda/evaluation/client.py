"""Problems as chat requests to an OpenAI-compatible server."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from typing import Any

import httpx

from remuda.evaluation.pictures import Scene
from remuda.evaluation.problem import Message, Problem
from remuda.protocol.errors import RemudaError

MAX_REPLY_TOKENS = 400


def drawn_messages(messages: Sequence[Message]) -> list[Message]:
    """Scenes become PNG images in data: URLs."""
    return [
        message
        | {"content": message["content"] if isinstance(message["content"], str) else [*map(_part, message["content"])]}
        for message in messages
    ]


def _part(part: dict[str, Any]) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(part["scene"])}} if part["type"] == "scene" else part


def data_url(scene: Scene) -> str:
    png = io.BytesIO()
    scene.draw().save(png, "PNG")
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()


class ServerAsk:
    """Asks a server, greedily. Thread-safe, as httpx.Client is."""

    def __init__(self, client: httpx.Client, model: str) -> None:
        self.client = client
        self.model = model

    def __call__(self, problem: Problem) -> str:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": drawn_messages(problem.messages),
            "temperature": 0,
            "max_tokens": MAX_REPLY_TOKENS,
        }
        if problem.tools:
            body["tools"] = list(problem.tools)
        response = self.client.post("/v1/chat/completions", json=body)
        if response.status_code != 200:
            raise RemudaError(f"the server answered {response.status_code}: {response.text[:300]}")
        message = response.json()["choices"][0]["message"]
        if calls := message.get("tool_calls"):  # a server that parses them: back to the form they were written in
            function = calls[0]["function"]
            return json.dumps({"name": function["name"], "parameters": json.loads(function["arguments"])})
        return message.get("content") or ""
