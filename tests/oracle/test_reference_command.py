"""The reference command on real input: 16 rank processes, concurrent streamed chats with text and images."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai

from tests.e2e.server import Server, serve
from tests.oracle import kit

PRESET = "maverick-tiny"


async def streamed_chat(client: openai.AsyncOpenAI, item: dict[str, Any]) -> list[int]:
    stream = await client.chat.completions.create(
        model=PRESET,
        messages=kit.openai_messages(item["messages"]),
        temperature=0,
        max_tokens=item.get("max_tokens", 16),
        stream=True,
        extra_body={"return_token_ids": True},
    )
    tokens: list[int] = []
    async for chunk in stream:
        for choice in chunk.choices:
            tokens += (choice.model_extra or {}).get("token_ids") or []
    return tokens


async def streamed_completion(client: openai.AsyncOpenAI, item: dict[str, Any]) -> list[int]:
    stream = await client.completions.create(
        model=PRESET,
        prompt=item.get("token_ids", item.get("text")),
        temperature=0,
        max_tokens=item.get("max_tokens", 16),
        stream=True,
        extra_body={"return_token_ids": True},
    )
    tokens: list[int] = []
    async for chunk in stream:
        for choice in chunk.choices:
            tokens += (choice.model_extra or {}).get("token_ids") or []
    return tokens


async def all_at_once(server: Server) -> dict[str, list[int]]:
    items = kit.prompts(PRESET)
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        calls = [(streamed_chat if "messages" in i else streamed_completion)(client, i) for i in items]
        answers = await asyncio.gather(*calls)
    return dict(zip([i["id"] for i in items], answers, strict=True))


def test_tp8_pp2_answers_concurrent_streams_as_the_oracle_does(tmp_path: Path) -> None:
    arguments = [str(kit.checkpoint(PRESET)), "--served-model-name", PRESET, "--dtype", "float32"]
    arguments += ["--tensor-parallel-size", "8", "--pipeline-parallel-size", "2", "--max-model-len", "1024"]
    with serve(tmp_path / "serve.log", *arguments) as server:
        titles = [proc.title for proc in server.ranks()]
        assert len(titles) == 16
        assert any("remuda: rank 11 tp3 pp1" in title for title in titles)
        got = asyncio.run(all_at_once(server))
    expected = {key: ref["output_token_ids"] for key, ref in kit.reference(PRESET).items()}
    assert got == expected
