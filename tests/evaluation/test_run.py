"""The runner and its client, without a model: a perfect and a useless answerer, and a recorded server."""

from __future__ import annotations

import base64
import io
import json

import httpx
import pytest
from PIL import Image

from remuda.evaluation.client import ServerAsk
from remuda.evaluation.problem import Problem
from remuda.evaluation.run import run_eval
from remuda.evaluation.skills import SKILLS, held_out_problems
from remuda.protocol.errors import ConfigError, RemudaError


def test_the_right_answers_score_all_and_others_none() -> None:
    perfect = run_eval(lambda problem: problem.answer, count=9, seed=4, progress=False)
    assert [skill.name for skill in perfect.skills] == list(SKILLS)
    assert all(skill.total.share == 1.0 for skill in perfect.skills)
    assert "below" not in perfect.table()
    useless = run_eval(lambda problem: "?", ["words", "images"], count=9, seed=4, progress=False)
    assert [skill.total.right for skill in useless.skills] == [0, 0]
    assert useless.table().count("below") == 2
    told = useless.as_json()["skills"]["images"]
    assert told["asked"] == 9 and len(told["failures"]) == 5
    assert sum(tally["asked"] for tally in told["variants"].values()) == 9


def test_an_unknown_skill_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="arithmetic"):
        run_eval(lambda problem: "", ["juggling"], progress=False)


def answering(reply: httpx.Response, seen: list[dict]) -> ServerAsk:  # type: ignore[type-arg]
    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        return reply

    return ServerAsk(httpx.Client(transport=httpx.MockTransport(handle), base_url="http://server"), "demo")


def completion(message: dict) -> httpx.Response:  # type: ignore[type-arg]
    return httpx.Response(200, json={"choices": [{"message": message}]})


def one(skill: str, variant: str) -> Problem:
    return next(p for p in held_out_problems(skill, 60, seed=0) if p.variant == variant)


def test_pictures_travel_as_png_data_urls() -> None:
    seen: list[dict] = []  # type: ignore[type-arg]
    asked = one("images", "wide")
    assert answering(completion({"content": "three"}), seen)(asked) == "three"
    (message,) = seen[0]["messages"]
    (part,) = [part for part in message["content"] if part["type"] == "image_url"]
    image = Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].split(",")[1])))
    scene = next(part["scene"] for part in asked.messages[0]["content"] if part["type"] == "scene")
    assert image.tobytes() == scene.draw().tobytes()
    assert seen[0]["temperature"] == 0


def test_tools_are_offered_and_parsed_calls_come_back_as_text() -> None:
    seen: list[dict] = []  # type: ignore[type-arg]
    asked = one("tools", "json")
    call = {"function": {"name": "f", "arguments": '{"a": 1}'}}
    reply = answering(completion({"content": None, "tool_calls": [call]}), seen)(asked)
    assert json.loads(reply) == {"name": "f", "parameters": {"a": 1}}
    assert seen[0]["tools"] == list(asked.tools)


def test_a_refusing_server_ends_the_run_with_its_words() -> None:
    ask = answering(httpx.Response(400, text="no images here"), [])
    with pytest.raises(RemudaError, match="no images here"):
        run_eval(ask, ["images"], count=2, progress=False)
