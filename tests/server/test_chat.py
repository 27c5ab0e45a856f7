"""/v1/chat/completions, /tokenize and images."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from remuda.text.images import tile_image
from tests.server.conftest import RunningServer
from tests.server.test_completions import events, ids_of
from tests.text import tiny

MESSAGES: Any = [{"role": "user", "content": "Grüße 🎉"}]
RENDERED = (
    "<|begin_of_text|><|header_start|>user<|header_end|>\n\nGrüße 🎉<|eot|><|header_start|>assistant<|header_end|>\n\n"
)


def picture(width: int = 40, height: int = 90) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def image_part(data: bytes | None = None) -> dict[str, Any]:
    url = "data:image/png;base64," + base64.b64encode(data or picture()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def test_a_conversation(server: RunningServer) -> None:
    answer = server.openai().chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=30)
    choice = answer.choices[0]
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert (choice.message.role, choice.message.content, choice.finish_reason) == (
        "assistant",
        "user\n\nGrüße 🎉",
        "stop",
    )
    request = server.engine.requests[-1]
    assert request.prompt_token_ids == ids_of(RENDERED)  # BOS once, from the template


def test_without_max_tokens_the_context_is_the_limit(server: RunningServer) -> None:
    server.openai().chat.completions.create(model="tiny", messages=MESSAGES)
    request = server.engine.requests[-1]
    assert request.sampling.max_tokens == 256 - len(request.prompt_token_ids)
    server.openai().chat.completions.create(model="tiny", messages=MESSAGES, max_completion_tokens=9)
    assert server.engine.requests[-1].sampling.max_tokens == 9


@pytest.mark.parametrize("n", [1, 3])
def test_streaming(server: RunningServer, n: int) -> None:
    stream = server.openai().chat.completions.create(
        model="tiny", messages=MESSAGES, n=n, stream=True, stream_options={"include_usage": True}
    )
    texts, reasons, roles = [""] * n, [None] * n, [None] * n
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles[choice.index] = choice.delta.role or roles[choice.index]  # type: ignore[call-overload]
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]  # type: ignore[call-overload]
        usage = chunk.usage
    assert texts == ["user\n\nGrüße 🎉"] * n
    assert roles == ["assistant"] * n and reasons == ["stop"] * n
    assert usage and usage.prompt_tokens == len(ids_of(RENDERED))
    assert usage.completion_tokens == n * (len(ids_of("user\n\nGrüße 🎉")) + 3)  # with the three special tokens


def test_running_usage(server: RunningServer) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events(server, "/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 5, "stream_options": options})
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks[1:]]
    assert counts == sorted(counts) and counts[-1] == 5


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(server: RunningServer, stream: bool) -> None:
    body = {"messages": MESSAGES, "max_tokens": 8, "logprobs": True, "top_logprobs": 2, "ignore_eos": True}
    if stream:
        choices = [e["choices"][0] for e in events(server, "/v1/chat/completions", body)]
    else:
        choices = server.http.post("/v1/chat/completions", json=body).json()["choices"]
    content = [entry for choice in choices for entry in (choice["logprobs"] or {"content": []})["content"]]
    expected = server.engine.requests[-1].prompt_token_ids[1:9]
    tokenizer = tiny.tokenizer()
    assert [entry["token"] for entry in content] == [tokenizer.token_text(token) for token in expected]
    assert [bytes(entry["bytes"]) for entry in content] == [tokenizer.token_bytes(token) for token in expected]
    assert [entry["logprob"] for entry in content] == [-0.5] * 8
    assert all([t["logprob"] for t in entry["top_logprobs"]] == [-0.5, -1.5] for entry in content)


def test_logprobs_without_alternatives(server: RunningServer) -> None:
    answer = server.openai().chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=2, logprobs=True)
    assert answer.choices[0].logprobs and answer.choices[0].logprobs.content
    assert [entry.top_logprobs for entry in answer.choices[0].logprobs.content] == [[], []]


def test_token_ids(server: RunningServer) -> None:
    body = {"messages": MESSAGES, "max_tokens": 4, "return_token_ids": True}
    answer = server.http.post("/v1/chat/completions", json={"model": "tiny"} | body).json()
    assert answer["prompt_token_ids"] == ids_of(RENDERED)
    assert answer["choices"][0]["token_ids"] == ids_of(RENDERED)[1:5]
    chunks = events(server, "/v1/chat/completions", body)
    assert chunks[0]["prompt_token_ids"] == ids_of(RENDERED)
    assert [token for c in chunks for token in c["choices"][0].get("token_ids", [])] == ids_of(RENDERED)[1:5]


def test_tools_are_rendered_unless_switched_off(server: RunningServer) -> None:
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    client = server.openai()
    for choice, shown in (("auto", True), ("none", False)):
        client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            tools=tools,
            tool_choice=choice,
            max_tokens=1,  # type: ignore[arg-type]
        )
        assert ("weather" in tiny.tokenizer().decode(server.engine.requests[-1].prompt_token_ids)) == shown


def test_the_final_message_is_continued(server: RunningServer) -> None:
    body = {
        "messages": [*MESSAGES, {"role": "assistant", "content": "one, two,"}], "max_tokens": 1,
        "add_generation_prompt": False, "continue_final_message": True,
    }  # fmt: skip
    assert server.http.post("/v1/chat/completions", json=body).status_code == 200
    assert tiny.tokenizer().decode(server.engine.requests[-1].prompt_token_ids).endswith("\n\none, two,")


def test_images(server: RunningServer) -> None:
    content: Any = ["look:", image_part(), {"type": "text", "text": "and"}, image_part(picture(20, 20))]
    answer = server.openai().chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": content}], max_tokens=1
    )
    request = server.engine.requests[-1]
    model = tiny.model_config(Path())
    assert model.vision and model.image_tokens
    assert [image.tile_count for image in request.images] == [9, 1]
    pixels = np.asarray(Image.open(io.BytesIO(picture())))
    assert request.images[0].tiles == tile_image(pixels, tiny.IMAGE_SIZE, 16).tiles.tobytes()
    for image in request.images:
        span = request.prompt_token_ids[image.start : image.start + image.length]
        assert span.count(model.image_tokens.patch) == image.tile_count * model.vision.tokens_per_tile
    assert answer.usage and answer.usage.prompt_tokens == len(request.prompt_token_ids)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"type": "image_url", "image_url": {"url": "ftp://x"}}], "image URLs must begin"),
        ([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}], "--allowed-local-media-path"),
        ([{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}], "--allowed-media-domains"),
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}], "not an image"),
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,!!"}}], "not valid base64"),
        ("a text with <|image|> in it", "placeholders"),
        ([image_part()] * 17, "at most 16"),
        ([{"type": "input_audio"}], "unsupported type"),
    ],
)
def test_images_that_cannot_be_taken(server: RunningServer, content: Any, message: str) -> None:
    body = {"messages": [{"role": "user", "content": content}]}
    answer = server.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"] and answer.json()["error"]["param"] == "messages"


def test_tokenize_and_detokenize(server: RunningServer) -> None:
    post = server.http.post
    answer = post("/tokenize", json={"prompt": "Grüße", "return_token_strs": True}).json()
    assert answer["tokens"] == tiny.tokenizer().encode("Grüße") and answer["count"] == len(answer["tokens"])
    assert answer["max_model_len"] == 256 and answer["token_strs"][0] == "<|begin_of_text|>"
    assert post("/tokenize", json={"prompt": "Grüße", "add_special_tokens": False}).json()["tokens"] == ids_of("Grüße")
    assert post("/tokenize", json={"messages": MESSAGES}).json()["tokens"] == ids_of(RENDERED)
    assert post("/detokenize", json={"tokens": ids_of(RENDERED)}).json() == {"prompt": RENDERED}
    assert post("/detokenize", json={"tokens": [10**6]}).status_code == 400
    assert post("/tokenize", json={}).status_code == 400
