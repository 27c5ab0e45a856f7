"""The runner and its client, without a model: a perfect and a useless answerer, and a recorded server."""

from __future__ import annotations

import base64
import gzip
import io
import json
from pathlib import Path

import httpx
import pytest
from PIL import Image

from remuda.evaluation.client import ServerAsk
from remuda.evaluation.problem import Problem, read_problems
from remuda.evaluation.run import run_eval
from remuda.evaluation.skills import SKILLS
from remuda.protocol.errors import ConfigError, RemudaError

PROBLEMS = read_problems()


def test_the_right_answers_score_all_and_others_none() -> None:
    perfect = run_eval(lambda problem: problem.answer, PROBLEMS, count=9, progress=False)
    assert [skill.name for skill in perfect.skills] == list(SKILLS)
    assert all(skill.total.share == 1.0 for skill in perfect.skills)
    assert "below" not in perfect.table()
    useless = run_eval(lambda problem: "?", PROBLEMS, ["words", "images"], count=9, progress=False)
    assert [skill.total.right for skill in useless.skills] == [0, 0]
    assert useless.table().count("below") == 2
    told = useless.as_json()["skills"]["images"]
    assert told["asked"] == 9 and len(told["failures"]) == 5
    assert sum(tally["asked"] for tally in told["variants"].values()) == 9


def test_an_unknown_skill_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="arithmetic"):
        run_eval(lambda problem: "", PROBLEMS, ["juggling"], progress=False)


def answering(reply: httpx.Response, seen: list[dict]) -> ServerAsk:  # type: ignore[type-arg]
    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        return reply

    return ServerAsk(httpx.Client(transport=httpx.MockTransport(handle), base_url="http://server"), "demo")


def completion(message: dict) -> httpx.Response:  # type: ignore[type-arg]
    return httpx.Response(200, json={"choices": [{"message": message}]})


def one(skill: str, variant: str) -> Problem:
    return next(p for p in PROBLEMS[skill] if p.variant == variant)


def test_pictures_travel_as_png_data_urls() -> None:
    seen: list[dict] = []  # type: ignore[type-arg]
    asked = one("images", "wide")
    assert answering(completion({"content": "three"}), seen)(asked) == "three"
    (message,) = seen[0]["messages"]
    (part,) = [part for part in message["content"] if part["type"] == "image_url"]
    image = Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].split(",")[1])))
    assert image.format == "PNG" and image.width > image.height
    assert seen[0]["temperature"] == 0


def test_tools_are_offered_and_parsed_calls_come_back_as_text() -> None:
    seen: list[dict] = []  # type: ignore[type-arg]
    asked = one("tools", "json")
    call = {"function": {"name": "f", "arguments": '{"a": 1}'}}
    reply = answering(completion({"content": None, "tool_calls": [call]}), seen)(asked)
    assert json.loads(reply) == {"name": "f", "parameters": {"a": 1}}
    assert answering(completion({"tool_calls": [call, call]}), [])(asked).splitlines() == [reply, reply]
    assert seen[0]["tools"] == asked.tools


def test_a_refusing_server_ends_the_run_with_its_words() -> None:
    ask = answering(httpx.Response(400, text="no images here"), [])
    with pytest.raises(RemudaError, match="no images here"):
        run_eval(ask, PROBLEMS, ["images"], count=2, progress=False)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_problems_of_ones_own(tmp_path: Path, pack) -> None:  # type: ignore[no-untyped-def]
    line = {"skill": "capitals", "variant": "Europe", "messages": [{"role": "user", "content": "Of France?"}]}
    file = tmp_path / "mine"
    file.write_bytes(pack(json.dumps(line | {"answer": "Paris"}).encode()))
    report = run_eval(lambda _: "Paris.", read_problems(file), progress=False)
    assert report.table().splitlines()[1].split() == ["capitals", "1", "1", "100.0%"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"{}\n", "line 1: .*skill"), (b"\x1f\x8bno", "cannot be read"), (b'{"a": 1}', "line 1: .*unknown field")],
)
def test_a_file_that_holds_no_problems(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ConfigError, match=expected):
        read_problems(tmp_path / "file")
