"""CPU time that the HTTP process spends per output token, measured against an engine that does nothing.

    python benchmarks/bench_http.py [--concurrency 32] [--input-len 32] [--output-len 64] [--json out.json]

Three processes: this one makes the load (half of the requests streamed), one serves HTTP just as `remuda serve` does,
and one plays an engine that gives every open sequence one token every `--step-ms`. Only the HTTP process is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import select
import socket
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import tokenizers
import uvloop
from tokenizers import decoders, models, pre_tokenizers

from remuda.config.engine import EngineConfig, SchedulerConfig
from remuda.config.model import LayerConfig, ModelConfig
from remuda.engine.client import AsyncEngine
from remuda.engine.connection import EngineConnection
from remuda.kv.specs import FullAttention
from remuda.metrics.serving import ServingMetrics
from remuda.protocol.request import AbortRequest, EngineReady, EngineRequest, FinishReason, RequestOutput, StepOutputs
from remuda.protocol.wire import WireError, engine_side_of_client
from remuda.server.config import ServerConfig
from remuda.server.listen import listen
from remuda.server.serve import HttpServer
from remuda.text.tokenizer import Tokenizer

MAX_MODEL_LEN = 4096
WORDS = ["the", "a", "of", "to", "and", "in", "is", "it", "you", "that", "he", "was", "for", "on", "are", "with"]


def tokenizer_json() -> str:
    """Byte-level BPE that knows some words whole."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: i for i, char in enumerate(alphabet)}
    merges = []
    for word in WORDS:
        whole = "Ġ"
        for char in word:
            if whole + char not in vocab:
                vocab[whole + char] = len(vocab)
                merges.append((whole, char))
            whole += char
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer.to_str()


def model_config(folder: str, vocab_size: int) -> ModelConfig:
    layer = LayerConfig(attention=FullAttention(), rope=True, qk_norm=False, temperature_tuning=False, moe=False)
    return ModelConfig(
        path=folder, architecture="LlamaForCausalLM", dtype="float32", checkpoint_dtype="float32", hidden_size=8,
        num_heads=1, num_kv_heads=1, head_dim=8, intermediate_size=8, vocab_size=vocab_size,
        max_position_embeddings=MAX_MODEL_LEN, rms_norm_eps=1e-5, rope_theta=1e4, rope_scaling=None,
        rope_interleaved=True, layers=(layer,), temperature_floor=1.0, temperature_scale=0.0,
        tie_word_embeddings=False, moe=None, vision=None, image_tokens=None, quant=None, bos_token_id=None,
        eos_token_ids=(),
    )  # fmt: skip


def play_engine(sock: socket.socket, step_s: float, vocab_size: int) -> None:
    """Every open sequence gets one token per step."""
    channel = engine_side_of_client(sock)
    channel.send(EngineReady(MAX_MODEL_LEN, 1, 16, 1.0, ""))
    left: dict[str, int] = {}
    rng = random.Random(0)
    next_step = time.monotonic()
    try:
        while True:
            pause = max(0.0, next_step - time.monotonic()) if left else None
            if select.select([sock], [], [], pause)[0]:
                channel.fill()
                for message in channel.pop():
                    if isinstance(message, EngineRequest):
                        left[message.request_id] = message.sampling.max_tokens or 1
                    elif isinstance(message, AbortRequest):
                        for id_ in message.request_ids:
                            left.pop(id_, None)
            now = time.monotonic()
            if left and now >= next_step:
                next_step = max(next_step + step_s, now)
                outputs = []
                for id_ in list(left):
                    left[id_] -= 1
                    reason = None if left[id_] else FinishReason.LENGTH
                    outputs.append(RequestOutput(id_, [rng.randrange(vocab_size)], reason))
                    if reason:
                        del left[id_]
                channel.send(StepOutputs(outputs))
    except WireError:
        pass


def serve(sock: socket.socket, listening: socket.socket, folder: str, access_log: bool, probe: Connection) -> None:
    """The HTTP process. `probe` answers every message with the CPU seconds used so far."""

    def answer() -> None:
        while probe.recv() is not None:
            probe.send(time.process_time())

    tokenizer = Tokenizer.from_dir(folder)
    scheduler = SchedulerConfig(max_model_len=MAX_MODEL_LEN)
    config = EngineConfig(model_config(folder, tokenizer.vocab_size), scheduler=scheduler)
    server = ServerConfig(
        host="127.0.0.1", model="bench", access_log=access_log, log_level="info" if access_log else "warning"
    )

    async def main() -> None:
        engine = AsyncEngine(scheduler, ServingMetrics(MAX_MODEL_LEN))
        connection = EngineConnection(engine, lambda: "it should not", lambda progress: None)
        await connection.open(sock)
        await connection.wait_ready()
        threading.Thread(target=answer, daemon=True).start()
        await HttpServer(server, config, engine, tokenizer, listening, lambda url: None).serve_until_stopped()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


class Load:
    """`concurrency` keep-alive connections, each sending one request after the other."""

    def __init__(self, options: argparse.Namespace, port: int) -> None:
        self.options = options
        self.port = port
        self.left = 0
        self.tokens = 0

    async def run(self, requests: int) -> None:
        self.left = requests
        await asyncio.gather(*[self._connection(i) for i in range(self.options.concurrency)])

    async def _connection(self, index: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        stream = index % 2 == 0 if self.options.mode == "mixed" else self.options.mode == "stream"
        while self.left > 0:
            self.left -= 1
            writer.write(self._request(index, stream))
            await (self._read_events(reader) if stream else self._read_answer(reader))
            self.tokens += self.options.output_len
        writer.close()

    def _request(self, seed: int, stream: bool) -> bytes:
        text = "".join(" " + word for word in random.Random(seed).choices(WORDS, k=self.options.input_len))
        body = {"model": "bench", "max_tokens": self.options.output_len, "stream": stream, "ignore_eos": True}
        if self.options.api == "chat":
            path, body["messages"] = "/v1/chat/completions", [{"role": "user", "content": text}]
        else:
            path, body["prompt"] = "/v1/completions", text
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        return head.encode() + b"content-length: %d\r\n\r\n" % len(data) + data

    @staticmethod
    async def _read_events(reader: asyncio.StreamReader) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head, head
        await reader.readuntil(b"data: [DONE]\n\n\r\n0\r\n\r\n")

    @staticmethod
    async def _read_answer(reader: asyncio.StreamReader) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head, head
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.split(b":")[1]))


def measure(options: argparse.Namespace) -> dict[str, float]:
    folder = tempfile.mkdtemp(prefix="bench-http-")
    Path(folder, "tokenizer.json").write_text(tokenizer_json())
    Path(folder, "tokenizer_config.json").write_text(json.dumps({
        "chat_template": "{% for m in messages %}{{ m['role'] + ':' + m['content'] }}{% endfor %}"
    }))  # fmt: skip
    vocab_size = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json").get_vocab_size()
    client, engine = socket.socketpair()
    listening = listen(ServerConfig(host="127.0.0.1", port=0))
    probe, probed = multiprocessing.Pipe()
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=play_engine, args=(engine, options.step_ms / 1e3, vocab_size), daemon=True),
        context.Process(target=serve, args=(client, listening, folder, options.access_log, probed), daemon=True),
    ]
    for process in processes:
        process.start()
    load = Load(options, listening.getsockname()[1])
    listening.listen()

    def cpu_s() -> float:
        probe.send("?")
        return float(probe.recv())

    async def both() -> dict[str, float]:
        await load.run(2 * options.concurrency)  # warm up
        load.tokens, cpu_before, before = 0, cpu_s(), time.perf_counter()
        await load.run(options.requests)
        cpu, wall = cpu_s() - cpu_before, time.perf_counter() - before
        return {
            "cpu_us_per_token": 1e6 * cpu / load.tokens,
            "cpu_ms_per_request": 1e3 * cpu / (load.tokens / options.output_len),
            "tokens": load.tokens,
            "tokens_per_s": load.tokens / wall,
            "http_process_busy": cpu / wall,
        }

    result = asyncio.run(both())
    for process in processes:
        process.terminate()
        process.join()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--api", choices=["completions", "chat"], default="completions")
    parser.add_argument(
        "--mode", choices=["mixed", "stream", "whole"], default="mixed", help="mixed: half are streamed"
    )
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--input-len", type=int, default=32, metavar="TOKENS")
    parser.add_argument("--output-len", type=int, default=64, metavar="TOKENS")
    parser.add_argument("--requests", type=int, default=960)
    parser.add_argument("--step-ms", type=float, default=4.0, help="time between an engine's steps")
    parser.add_argument("--access-log", action="store_true")
    parser.add_argument("--json", metavar="FILE", help="write the figures here, too")
    options = parser.parse_args()
    result = measure(options)
    for name, value in result.items():
        print(f"{name:<24}{value:>14,.2f}")
    if options.json:
        Path(options.json).write_text(json.dumps({"options": vars(options), "result": result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
