"""/v1/completions through the openai client and raw HTTP."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from remuda.protocol.request import EngineRequest
from tests.server.conftest import RunningServer
from tests.text import tiny

TEXT = "naïve 日本語 🎉 text"


def ids_of(text: str) -> list[int]:
    return tiny.tokenizer().encode(text, add_special_tokens=False)


def events(server: RunningServer, path: str, body: dict[str, Any]) -> list[Any]:
    """All events of a stream, parsed; the last must be [DONE]."""
    with server.http.stream("POST", path, json={"model": "tiny", "stream": True} | body) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def test_text_prompt(server: RunningServer) -> None:
    length = len(ids_of(TEXT))
    answer = server.openai().completions.create(model="tiny", prompt=TEXT, max_tokens=length)
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-") and answer.model == "tiny"
    assert [(c.index, c.text, c.finish_reason) for c in answer.choices] == [(0, TEXT, "length")]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (length + 1, length)
    assert answer.usage.total_tokens == 2 * length + 1
    assert answer.usage.prompt_tokens_details and answer.usage.prompt_tokens_details.cached_tokens == 1


def test_streamed_text_is_the_same(server: RunningServer) -> None:
    length = len(ids_of(TEXT)) - 1
    chunks = list(
        server.openai().completions.create(
            model="tiny", prompt=TEXT, max_tokens=length, stream=True, stream_options={"include_usage": True}
        )
    )
    whole = server.openai().completions.create(model="tiny", prompt=TEXT, max_tokens=length)
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage


@pytest.mark.parametrize("stream", [False, True])
def test_many_prompts_and_n(server: RunningServer, stream: bool) -> None:
    prompts = ["one", "two words"]
    answer: Any = server.openai().completions.create(
        model="tiny", prompt=prompts, n=2, max_tokens=6, echo=True, stream=stream
    )
    texts = ["", "", "", ""]
    for part in answer if stream else [answer]:
        for choice in part.choices:
            texts[choice.index] += choice.text
    assert texts[0] == texts[1] and texts[0].startswith("oneone")
    assert texts[2] == texts[3] and texts[2].startswith("two wordstwo ")


@pytest.mark.parametrize("words", [20, 60])
def test_many_texts_together_too_long_for_the_event_loop(server: RunningServer, words: int) -> None:
    prompts = [f"prompt {i} " + "word " * words for i in range(90)]
    assert (sum(map(len, prompts)) > 16_384) == (words == 60)
    answer = server.openai().completions.create(model="tiny", prompt=prompts, max_tokens=1, echo=True)
    for choice, prompt in zip(answer.choices, prompts, strict=True):
        assert choice.text.startswith(prompt)


def test_token_id_prompts(server: RunningServer) -> None:
    client = server.openai()
    ids = ids_of("abc")
    for prompt in (ids, [ids]):
        answer = client.completions.create(
            model="tiny", prompt=prompt, max_tokens=2, extra_body={"return_token_ids": True}
        )
        choice: Any = answer.choices[0]
        assert choice.prompt_token_ids == ids
        assert choice.token_ids == (ids[1:] * 2)[:2]
    answer = client.completions.create(model="tiny", prompt=[ids, ids_of("xyz")], max_tokens=1, echo=True)
    assert [c.text[:3] for c in answer.choices] == ["abc", "xyz"]


def test_streamed_token_ids(server: RunningServer) -> None:
    chunks = events(server, "/v1/completions", {"prompt": "abc", "max_tokens": 5, "return_token_ids": True})
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["prompt_token_ids"] == tiny.tokenizer().encode("abc")
    assert all("prompt_token_ids" not in choice for choice in choices[1:])
    assert [token for choice in choices for token in choice["token_ids"]] == (ids_of("abc") * 5)[:5]


def test_logprobs(server: RunningServer) -> None:
    answer = server.openai().completions.create(model="tiny", prompt="ab", max_tokens=2, logprobs=2, echo=True)
    logprobs: Any = answer.choices[0].logprobs
    assert logprobs.tokens[0] == "<|begin_of_text|>" and logprobs.token_logprobs[0] is None
    assert logprobs.tokens[1:] == [tiny.tokenizer().token_text(t) for t in [*ids_of("ab"), *(ids_of("ab") * 2)[:2]]]
    assert logprobs.token_logprobs[1:] == [-0.5] * (len(logprobs.tokens) - 1)
    pairs = list(zip(logprobs.tokens, logprobs.top_logprobs, strict=True))[1:]
    assert all(top[token] == -0.5 and len(top) == 2 for token, top in pairs)
    assert logprobs.text_offset[1] == len("<|begin_of_text|>")


def test_tokens_as_ids(server: RunningServer) -> None:
    answer = server.openai().completions.create(
        model="tiny", prompt="ab", max_tokens=1, logprobs=0, extra_body={"return_tokens_as_token_ids": True}
    )
    assert answer.choices[0].logprobs and answer.choices[0].logprobs.tokens == [f"token_id:{ids_of('ab')[0]}"]


def test_scoring_a_prompt_generates_nothing(server: RunningServer) -> None:
    answer = server.openai().completions.create(model="tiny", prompt="abc", max_tokens=0, echo=True, logprobs=1)
    assert answer.choices[0].text == "abc"
    assert answer.choices[0].logprobs and len(answer.choices[0].logprobs.tokens or []) == 1 + len(ids_of("abc"))
    assert answer.usage and answer.usage.completion_tokens == 0
    body = {"prompt": "abc", "max_tokens": 0, "echo": True, "stream_options": {"include_usage": True}}
    *chunks, counted = events(server, "/v1/completions", body)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "abc"
    assert counted["usage"]["completion_tokens"] == 0


def test_prompt_logprobs(server: RunningServer) -> None:
    body = {"model": "tiny", "prompt": "ab", "max_tokens": 1, "prompt_logprobs": 1}
    positions = server.http.post("/v1/completions", json=body).json()["choices"][0]["prompt_logprobs"]
    token = ids_of("ab")[0]
    assert positions[0] is None
    assert positions[1][str(token)] == {
        "logprob": -0.5, "rank": 1, "decoded_token": tiny.tokenizer().token_text(token)
    }  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings(server: RunningServer, stream: bool) -> None:
    body: dict[str, Any] = {"prompt": "one two three ", "max_tokens": 60, "stop": ["two t", "zzz"]}
    aborted = len(server.engine.aborted)
    for include, expected in ((False, "one "), (True, "one two t")):
        body["include_stop_str_in_output"] = include
        if stream:
            choices = [event["choices"][0] for event in events(server, "/v1/completions", body)]
        else:
            choices = server.http.post("/v1/completions", json=body).json()["choices"]
        assert "".join(choice["text"] for choice in choices) == expected
        assert (choices[-1]["finish_reason"], choices[-1]["stop_reason"]) == ("stop", "two t")
    server.engine.wait_for(lambda: len(server.engine.aborted) == aborted + 2)  # the engine need not go on


def test_stop_token_ids_and_end_of_sequence(server: RunningServer) -> None:
    tokenizer = tiny.tokenizer()
    ids = tokenizer.encode("ab<|eot|>cd<|patch|>ef")
    eot, patch = ids_of("<|eot|>")[0], ids_of("<|patch|>")[0]
    body: dict[str, Any] = {"prompt": ids, "max_tokens": 50, "skip_special_tokens": False, "return_token_ids": True}
    ended = server.http.post("/v1/completions", json=body).json()["choices"][0]
    assert (ended["text"], ended["finish_reason"], ended["stop_reason"]) == ("ab", "stop", None)
    assert ended["token_ids"][-1] == eot
    body |= {"ignore_eos": True, "stop_token_ids": [patch]}
    ended = server.http.post("/v1/completions", json=body).json()["choices"][0]
    assert (ended["text"], ended["stop_reason"]) == ("ab<|eot|>cd", patch)
    body["include_stop_str_in_output"] = True
    assert server.http.post("/v1/completions", json=body).json()["choices"][0]["text"] == "ab<|eot|>cd<|patch|>"


def last_request(server: RunningServer) -> EngineRequest:
    return server.engine.requests[-1]


def test_sampling_parameters_reach_the_engine(server: RunningServer) -> None:
    body = {
        "prompt": "ab", "max_tokens": 3, "temperature": 0.3, "top_p": 0.8, "top_k": 7, "min_p": 0.1, "seed": 11,
        "presence_penalty": 0.5, "frequency_penalty": -0.5, "repetition_penalty": 1.1, "logit_bias": {"5": -3},
        "min_tokens": 1, "ignore_eos": True, "bad_words": ["the"], "allowed_token_ids": [1, 2, 3], "priority": 0,
        "cache_salt": "salt",
    }  # fmt: skip
    assert server.http.post("/v1/completions", json=body).status_code == 200
    request = last_request(server)
    for name in set(body) - {"prompt", "priority", "cache_salt", "logit_bias"}:
        assert getattr(request.sampling, name) == body[name], name
    assert request.sampling.logit_bias == {5: -3.0}
    assert (request.priority, request.cache_salt) == (0, "salt")
    assert (
        ids_of("the") in request.sampling.bad_words_token_ids and ids_of(" the") in request.sampling.bad_words_token_ids
    )
    assert request.sampling.eos_token_ids == ids_of("<|eot|>")


def test_defaults_of_the_model_and_of_the_api(server: RunningServer) -> None:
    server.http.post("/v1/completions", json={"prompt": "ab"})
    sampling = last_request(server).sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.6, 0.9, 16)
    assert sampling.seed is not None
    server.http.post("/v1/completions", json={"prompt": "ab", "temperature": 0, "top_p": None})
    assert (last_request(server).sampling.temperature, last_request(server).sampling.top_p) == (0.0, 0.9)


def test_n_sequences_get_seeds_in_a_row(server: RunningServer) -> None:
    server.http.post("/v1/completions", json={"prompt": "ab", "n": 3, "seed": 2**63 - 2})
    assert [r.sampling.seed for r in server.engine.requests[-3:]] == [2**63 - 2, 2**63 - 1, -(2**63)]
    assert len({r.request_id for r in server.engine.requests}) == len(server.engine.requests)


def test_vllm_defaults_on_request(serve: Any) -> None:
    server = serve(generation_config="vllm")
    server.http.post("/v1/completions", json={"prompt": "ab"})
    assert (last_request(server).sampling.temperature, last_request(server).sampling.top_p) == (1.0, 1.0)


async def collect(client: openai.AsyncOpenAI, prompt: str) -> str:
    stream = await client.completions.create(model="tiny", prompt=prompt, max_tokens=30, stream=True)
    return "".join([chunk.choices[0].text async for chunk in stream])


def test_async_client_many_at_once(server: RunningServer) -> None:
    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="x") as client:
            return await asyncio.gather(*[collect(client, f"prompt {i} ") for i in range(24)])

    for i, text in enumerate(asyncio.run(all_of_them())):
        assert text.startswith(f"prompt {i} prompt")
