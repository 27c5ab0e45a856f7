"""`remuda chat` with functions to call, against a recorded server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from remuda.cli.chat import Conversation, read_tools
from remuda.protocol.errors import ConfigError

TOOL = {"type": "function", "function": {"name": "clock"}}


def stream_of(*deltas: dict[str, Any]) -> httpx.Response:
    chunks = [json.dumps({"choices": [{"index": 0, "delta": delta}]}) for delta in deltas]
    return httpx.Response(200, text="".join(f"data: {chunk}\n\n" for chunk in [*chunks, "[DONE]"]))


def conversation(tmp_path: Path, replies: list[httpx.Response], seen: list[dict[str, Any]]) -> Conversation:
    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        return replies.pop(0)

    (tmp_path / "tools.json").write_text(json.dumps([TOOL]))
    options = dict.fromkeys(("system", "image", "temperature"), None) | {
        "served_model": "m", "max_tokens": 9, "tools": str(tmp_path / "tools.json"),
    }  # fmt: skip
    return Conversation(httpx.Client(transport=httpx.MockTransport(handle), base_url="http://server"), options)


CALL = (
    {"reasoning_content": "hm "},
    {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "clock", "arguments": ""}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '{"zone": '}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '"CET"}'}}]},
)


def test_a_call_is_shown_and_its_result_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr("builtins.input", lambda prompt: "noon")
    conversation(tmp_path, [stream_of(*CALL), stream_of({"content": "It is noon."})], seen).say("What time is it?")
    assert capsys.readouterr().out == 'hm clock {"zone": "CET"}\nIt is noon.\n'
    assert [request["tools"] for request in seen] == [[TOOL], [TOOL]]
    function = {"name": "clock", "arguments": '{"zone": "CET"}'}
    call = {"index": 0, "id": "c1", "type": "function", "function": function}
    assert seen[1]["messages"][1:] == [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
    ]


def test_a_failure_takes_the_whole_turn_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("builtins.input", lambda prompt: "noon")
    talk = conversation(tmp_path, [stream_of(*CALL), httpx.Response(503, text="gone")], [])
    talk.say("What time is it?")
    assert "gone" in capsys.readouterr().err and talk.messages == []


@pytest.mark.parametrize("content", ["{", "{}"])
def test_a_file_that_holds_no_tools(tmp_path: Path, content: str) -> None:
    (tmp_path / "file").write_text(content)
    with pytest.raises(ConfigError, match="--tools"):
        read_tools(tmp_path / "file")
