"""Tool calls and reasoning, as clients get them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.server.conftest import RunningServer
from tests.server.test_completions import events
from tests.text import tiny

ASKED: Any = [{"role": "user", "content": "x"}]
WEATHER: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CLOCK: Any = {"type": "function", "function": {"name": "clock"}}
TOOLS: Any = [WEATHER, CLOCK]
TWO_CALLS = 'Let me see.\n[weather(city="Zürich [ZH]", days=[1, 2]), clock()]'
Serve = Callable[..., RunningServer]


def tokens_of(text: str) -> list[int]:
    tokenizer = tiny.tokenizer()
    return [*tokenizer.encode(text, add_special_tokens=False), tokenizer.backend.token_to_id("<|eot|>")]


def llama(serve: Serve, text: str, **config: Any) -> RunningServer:
    """Always says `text`. Its template leaves the tools out: schemas are long, and the context is short."""
    tokens = tokens_of(text)
    options = {"tool_call_parser": "llama4_pythonic", "chat_template": "{{ messages[0]['content'] }}"}
    return serve(script=lambda request: tokens, **options | config)


def test_calls_of_a_whole_answer(serve: Serve) -> None:
    client = llama(serve, TWO_CALLS).openai()
    choice = client.chat.completions.create(model="tiny", messages=ASKED, tools=TOOLS).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content == "Let me see."
    calls = choice.message.tool_calls or []
    assert [(call.type, call.function.name, json.loads(call.function.arguments)) for call in calls] == [  # type: ignore[union-attr]
        ("function", "weather", {"city": "Zürich [ZH]", "days": [1, 2]}), ("function", "clock", {}),
    ]  # fmt: skip
    assert len({call.id for call in calls}) == 2


def test_calls_in_a_stream(serve: Serve) -> None:
    chunks = events(llama(serve, TWO_CALLS), "/v1/chat/completions", {"messages": ASKED, "tools": TOOLS, "n": 2})
    for index in (0, 1):
        choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        deltas = [call for choice in choices for call in choice["delta"].get("tool_calls", ())]
        assert "".join(choice["delta"].get("content", "") for choice in choices) == "Let me see."
        named = [delta for delta in deltas if "id" in delta]
        assert [(delta["index"], delta["function"]["name"], delta["type"]) for delta in named] == [
            (0, "weather", "function"), (1, "clock", "function"),
        ]  # fmt: skip
        grown = [delta["function"]["arguments"] for delta in deltas if delta["index"] == 0]
        assert json.loads("".join(grown)) == {"city": "Zürich [ZH]", "days": [1, 2]}
        assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["tool_calls"]


class weather(BaseModel):
    """Asked for by its class: the openai client parses the arguments into it."""

    city: str
    days: list[int]


def test_openais_streaming_helper(serve: Serve) -> None:
    client = llama(serve, TWO_CALLS).openai()
    tools = [openai.pydantic_function_tool(weather), CLOCK | {"function": {"name": "clock", "strict": True}}]
    with client.chat.completions.stream(model="tiny", messages=ASKED, tools=tools) as stream:
        kinds = [event.type for event in stream]
        choice = stream.get_final_completion().choices[0]
    assert kinds.count("tool_calls.function.arguments.done") == 2
    first = (choice.message.tool_calls or [])[0]
    assert first.function.parsed_arguments == weather(city="Zürich [ZH]", days=[1, 2])


def test_only_what_was_offered_is_a_call(serve: Serve) -> None:
    server = llama(serve, TWO_CALLS)
    create = server.openai().chat.completions.create
    for options in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        choice = create(model="tiny", messages=ASKED, **options).choices[0]  # type: ignore[call-overload]
        assert (choice.message.content, choice.finish_reason) == (TWO_CALLS, "stop")
        assert choice.message.tool_calls is None
    choice = create(model="tiny", messages=ASKED, tools=[CLOCK]).choices[0]
    assert choice.message.content == TWO_CALLS and choice.finish_reason == "stop"


def test_one_call_at_most(serve: Serve) -> None:
    server = llama(serve, TWO_CALLS)
    body = {"messages": ASKED, "tools": TOOLS, "parallel_tool_calls": False}
    message = server.http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["weather"]
    chunks = events(server, "/v1/chat/completions", body)
    indices = {call["index"] for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", ())}
    assert indices == {0}


@pytest.mark.parametrize("text", ["[1, 2, 3]", "[]", '{"name": "Bob", "age": 5}', "[Note] rain ", "  "])
def test_lookalikes_reach_the_client(serve: Serve, text: str) -> None:
    server = llama(serve, text)
    body = {"messages": ASKED, "tools": TOOLS}
    choice = server.http.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (text, "stop")
    chunks = events(server, "/v1/chat/completions", body)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text


def test_a_cut_call_ends_for_its_length(serve: Serve) -> None:
    server = llama(serve, '[weather(city="a very long name of a city")]')
    body = {"messages": ASKED, "tools": TOOLS, "max_tokens": 20}
    choice = server.http.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"].startswith('{"city": "a')


def test_logprobs_and_token_ids_beside_calls(serve: Serve) -> None:
    body = {"messages": ASKED, "tools": TOOLS, "logprobs": True, "return_token_ids": True}
    chunks = events(llama(serve, TWO_CALLS), "/v1/chat/completions", body)[1:]
    tokens = tokens_of(TWO_CALLS)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [token for choice in choices for token in choice.get("token_ids", ())] == tokens
    assert sum(len(choice["logprobs"]["content"]) for choice in choices if choice["logprobs"]) == len(tokens)


def test_parsing_can_be_switched_off(serve: Serve) -> None:
    server = llama(serve, TWO_CALLS, auto_tool_choice=False)
    choice = server.openai().chat.completions.create(model="tiny", messages=ASKED, tools=TOOLS).choices[0]
    assert choice.message.content == TWO_CALLS


def test_a_conversation_with_tools_in_its_history(server: RunningServer) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
    for content in ({"content": None}, {}, {"content": ""}):
        messages = [
            *ASKED, {"role": "assistant", "tool_calls": [call]} | content, {"role": "tool", "tool_call_id": "c1"},
            {"role": "system", "content": "be brief"}, *ASKED,
        ]  # fmt: skip
        body = {"messages": messages, "max_tokens": 1, "tools": TOOLS}
        assert server.http.post("/v1/chat/completions", json=body).status_code == 200


@pytest.mark.parametrize(
    "tool",
    [
        {}, {"type": "function"}, {"type": "function", "function": {}},
        {"type": "retrieval", "function": {"name": "f"}},
        {"type": "function", "function": {"name": 5}}, {"type": "function", "function": {"name": ""}},
        {"type": "function", "function": {"name": "f", "parameters": []}}, {"type": None, "function": {"name": "f"}},
        {"type": "function", "function": {"name": "f", "description": 1}},
        {"type": "function", "function": {"name": "f", "strict": "yes"}},
    ],
)  # fmt: skip
def test_malformed_tools_are_refused(server: RunningServer, tool: Any) -> None:
    answer = server.http.post("/v1/chat/completions", json={"messages": ASKED, "tools": [WEATHER, tool]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tools" and "tools[1]" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "weather"}}}, "tool_choice"),
        ({"temperature": 2.1}, "temperature"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"messages": [*ASKED, {"role": "tool", "content": "5"}]}, "messages"),
        ({"messages": [{"role": "narrator", "content": "5"}]}, "messages"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(server: RunningServer, options: Any, param: str) -> None:
    answer = server.http.post("/v1/chat/completions", json={"messages": ASKED, "tools": TOOLS} | options)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param


THOUGHT = '<think>\nIt is "a < b".\n</think>\n\nSo\nweather(city="b")'


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_beside_content_and_calls(serve: Serve, stream: bool) -> None:
    server = llama(serve, THOUGHT, reasoning_parser="qwen3")
    body = {"messages": ASKED, "tools": TOOLS, "max_tokens": 200}
    if stream:
        chunks = events(server, "/v1/chat/completions", body | {"stream_options": {"include_usage": True}})
        messages = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
        usage = chunks[-1]["usage"]
    else:
        answer = server.http.post("/v1/chat/completions", json=body).json()
        messages, usage = [answer["choices"][0]["message"]], answer["usage"]
    assert "".join(message.get("reasoning_content", "") for message in messages) == 'It is "a < b".'
    assert "".join(message.get("content", "") for message in messages) == "So"
    calls = [call["function"]["arguments"] for message in messages for call in message.get("tool_calls", ())]
    assert json.loads("".join(calls)) == {"city": "b"}
    reasoning = tiny.tokenizer().encode(THOUGHT[: THOUGHT.index("</think>")] + "</think>", add_special_tokens=False)
    assert abs(usage["completion_tokens_details"]["reasoning_tokens"] - len(reasoning)) <= 1  # a token may straddle
    assert usage["completion_tokens"] == len(tokens_of(THOUGHT))


def test_reasoning_effort_goes_to_a_template_that_knows_it(serve: Serve) -> None:
    template = "{{ 'effort ' + reasoning_effort if reasoning_effort else '' }}{{ messages[0]['content'] }}"
    server = serve(chat_template=template)
    body = {"messages": ASKED, "reasoning_effort": "high", "max_tokens": 1}
    assert server.http.post("/v1/chat/completions", json=body).status_code == 200
    assert tiny.tokenizer().decode(server.engine.requests[-1].prompt_token_ids) == "effort highx"
