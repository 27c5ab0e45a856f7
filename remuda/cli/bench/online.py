"""`remuda bench serve`: load for any OpenAI-compatible server, and the latencies that its clients see."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from remuda.cli.bench.client import Client, HttpError
from remuda.cli.bench.datasets import Sample, from_file, random_texts
from remuda.cli.bench.metrics import RequestRecord, check_writable, parse_goodput, summarize, table
from remuda.config.arguments import Flag, FlagGroup, count, positive, share, whole
from remuda.config.parser import FlagParser
from remuda.hub.source import find_model
from remuda.protocol.errors import ConfigError

FLAGS = (
    FlagGroup(
        "server",
        (
            Flag("base-url", "server to load", default="http://127.0.0.1:8000", metavar="URL"),
            Flag("model", "model name to ask for; default: the first that the server lists", metavar="NAME"),
            Flag("backend", "completions or chat", default="openai", choices=("openai", "openai-chat")),
            Flag("endpoint", "path, if it is not the backend's usual one", metavar="PATH"),
            Flag("api-key", "bearer token", metavar="KEY"),
        ),
    ),
    FlagGroup(
        "load",
        (
            Flag("num-prompts", "requests to make", count, 200, metavar="N"),
            Flag("request-rate", "arrivals per second; inf: all at once", positive, float("inf"), metavar="RATE"),
            Flag("burstiness", "1: Poisson; below: burstier; above: more even", positive, 1.0, metavar="SHAPE"),
            Flag("max-concurrency", "most requests open at once", count, metavar="N"),
            Flag("num-warmups", "requests before the clock starts", whole, 0, metavar="N"),
            Flag("seed", "seed of prompts and arrivals", int, 0),
        ),
    ),
    FlagGroup(
        "prompts",
        (
            Flag("dataset-name", "random, or a file of prompts", default="random",
                 choices=("random", "custom", "sharegpt")),
            Flag("dataset-path", "JSON lines with \"prompt\", or a ShareGPT-like list", metavar="FILE"),
            Flag("tokenizer", "checkpoint whose tokenizer makes random prompts of exact length", metavar="DIR"),
            Flag("random-input-len", "tokens of a random prompt", count, 1024, metavar="TOKENS"),
            Flag("random-output-len", "tokens to ask for", count, 128,
                 metavar="TOKENS"),
            Flag("random-range-ratio", "lengths vary by this share", share, 0.0, metavar="RATIO"),
            Flag("ignore-eos", "make exactly as many tokens as asked for", bool, False),
            Flag("temperature", "sampling temperature; default: the server's", float),
        ),
    ),
    FlagGroup(
        "result",
        (
            Flag("goodput", "limits of a good request, e.g. ttft:500 tpot:50", plural=True, metavar="NAME:MS"),
            Flag("save-result", "write the figures to a file", bool, False),
            Flag("result-filename", "that file", default="bench_serve.json", metavar="FILE"),
            Flag("json", "print the figures as JSON only", bool, False),
            Flag("disable-tqdm", "no progress bar", bool, False),
        ),
    ),
)  # fmt: skip


def run(argv: Sequence[str]) -> int:
    options = FlagParser("remuda bench serve", "Load an OpenAI-compatible server and report latencies.", FLAGS).read(
        argv
    )
    check_writable(options["result_filename"] if options["save_result"] else None)
    figures = asyncio.run(Load(options).measure())
    print(json.dumps(figures) if options["json"] else table(figures))
    if options["save_result"]:
        Path(options["result_filename"]).write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if figures["completed"] else 1


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    text: str = ""
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Event(msgspec.Struct):
    """The part of a streamed completion or chat chunk that a benchmark reads."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


class Load:
    """One benchmark run."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.client = Client(options["base_url"], options["api_key"])
        self.chat = options["backend"] == "openai-chat"
        self.path = options["endpoint"] or ("/v1/chat/completions" if self.chat else "/v1/completions")
        self.goodput_ms = parse_goodput(options["goodput"])
        self.limit = asyncio.Semaphore(options["max_concurrency"] or 1 << 30)
        self.decoder = msgspec.json.Decoder(_Event)
        self.model = options["model"]

    async def measure(self) -> dict[str, Any]:
        options = self.options
        self.model = self.model or await self._first_model()
        warmups = options["num_warmups"]
        samples = self._samples(options["num_prompts"] + warmups)
        await asyncio.gather(*(self._ask(sample) for sample in samples[:warmups]))
        started = time.perf_counter()
        records = await self._arrivals(samples[warmups:])
        figures = summarize(records, time.perf_counter() - started, self.goodput_ms)
        self.client.close()
        errors = [record.error for record in records if record.error]
        asked = ("request_rate", "max_concurrency", "num_prompts", "random_input_len", "random_output_len", "seed")
        settings = {key: options[key] for key in asked if options[key] not in (None, float("inf"))}
        return {"model": self.model, **settings, **figures, **({"first_error": errors[0]} if errors else {})}

    async def _arrivals(self, samples: list[Sample]) -> list[RequestRecord]:
        """Start every request at its time; return when all have ended."""
        from tqdm import tqdm

        rng = random.Random(self.options["seed"])
        rate, shape = self.options["request_rate"], self.options["burstiness"]
        quiet = self.options["json"] or self.options["disable_tqdm"]
        tasks = []
        with tqdm(total=len(samples), disable=quiet or None, unit="request") as bar:
            due = time.perf_counter()
            for sample in samples:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                tasks.append(asyncio.create_task(self._ask(sample)))
                tasks[-1].add_done_callback(lambda _: bar.update())
                due += 0.0 if rate == float("inf") else rng.gammavariate(shape, 1 / (rate * shape))
            return await asyncio.gather(*tasks)

    async def _ask(self, sample: Sample) -> RequestRecord:
        async with self.limit:
            record = RequestRecord(sent_s=time.perf_counter())
            try:
                async for payload in self.client.post_events(self.path, self._body(sample)):
                    self._take(record, self.decoder.decode(payload))
            except (HttpError, msgspec.MsgspecError) as error:
                record.error = str(error)
            return record

    def _take(self, record: RequestRecord, event: _Event) -> None:
        if event.error is not None:
            record.error = str(event.error)
        if event.choices:
            choice = event.choices[0]
            if choice.text or (choice.delta and choice.delta.content) or choice.finish_reason:
                record.arrivals_s.append(time.perf_counter())
        if event.usage:
            record.prompt_tokens, record.output_tokens = event.usage.prompt_tokens, event.usage.completion_tokens

    def _body(self, sample: Sample) -> dict[str, object]:
        body: dict[str, object] = {
            "model": self.model, "max_tokens": sample.output_tokens, "stream": True,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        if self.chat:
            body["messages"] = [{"role": "user", "content": sample.prompt}]
        else:
            body["prompt"] = sample.prompt
        if self.options["ignore_eos"]:
            body["ignore_eos"] = True
        if self.options["temperature"] is not None:
            body["temperature"] = self.options["temperature"]
        return body

    def _samples(self, number: int) -> list[Sample]:
        options = self.options
        output = options["random_output_len"]
        if options["dataset_name"] != "random":
            if not options["dataset_path"]:
                raise ConfigError(f"--dataset-name {options['dataset_name']} needs --dataset-path")
            return from_file(Path(options["dataset_path"]), number, output, options["seed"])
        tokenizer = _tokenizer_file(options["tokenizer"]) if options["tokenizer"] else None
        ratio = options["random_range_ratio"]
        texts = random_texts(number, options["random_input_len"], tokenizer, options["seed"], ratio)
        return [Sample(text, output) for text in texts]

    async def _first_model(self) -> str:
        try:
            return str(msgspec.json.decode(await self.client.get("/v1/models"))["data"][0]["id"])
        except HttpError as error:
            raise ConfigError(str(error)) from error
        except (msgspec.MsgspecError, KeyError, IndexError, TypeError) as error:
            raise ConfigError("the server's /v1/models lists no model: give --model") from error


def _tokenizer_file(model: str) -> Path:
    source = find_model(model)
    source.complete_tokenizer()
    return source.directory / "tokenizer.json"
