"""Eight calls of every kind against a server, all at once, and all that their clients saw of the answers."""

from __future__ import annotations

import base64
import io
import json
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from PIL import Image

from tests.e2e.server import Server

LAYOUT = ["--tensor-parallel-size", "2", "--pipeline-parallel-size", "2", "--max-model-len", "1024"]
EXACT = ["--dtype", "float32", "--native-kernels", "off"]
NAME = ["--served-model-name", "demo"]
TOKENS = 96

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


def late_text(server: Server) -> str:
    """A text of several tokens that the greedy call says after three quarters of its way: a stop string."""
    how, path, body = calls("no such text")[0]
    ((_, text, _),) = how(server, path, body, lambda tokens: None)[0].values()
    return text[len(text) * 3 // 4 :][:9]
