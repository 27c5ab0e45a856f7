"""TP2 x PP2 over two hosts, played by two network namespaces of one machine with two GPUs each: tokens and hops.

    python benchmarks/gpu/hosts.py MODEL_DIR OUT.jsonl        (root, iproute2, four GPUs)

Between the namespaces there is nothing but a veth pair: NCCL goes over sockets, as between machines without RDMA. The
demo model must give the tokens of one host. MODEL_DIR (a config.json; weights are random) tells what a step costs more:
it has two hops, rows to the second stage and tokens back to the first.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from remuda import LLM, SamplingParams

NETWORK = "10.123.0"
BATCHES = (1, 32, 128)
STEPS = 64
LIMIT_S = 120
QUESTIONS = ("What is 47 x 36?", "Sort these words: pear, apple, cherry", "Spell the word giraffe backwards.")


def engine_options(model: str | None) -> dict[str, Any]:
    """Of both nodes alike; dummy weights for a model that is a configuration only."""
    options: dict[str, Any] = {
        "device": "cuda", "tensor_parallel_size": 2, "pipeline_parallel_size": 2, "max_model_len": 2048,
        "max_num_batched_tokens": 8192,
    }  # fmt: skip
    return options | ({"load_format": "dummy", "enable_prefix_caching": False} if model else {"dtype": "float32"})


def measure(model: str | None, nnodes: int) -> dict[str, Any]:
    """The engine of node 0: tokens of the demo model, or milliseconds per step by batch size."""
    across = {"nnodes": nnodes, "master_addr": f"{NETWORK}.1"} if nnodes > 1 else {}
    bare = {"skip_tokenizer_init": True} if model else {}
    with LLM(model, **engine_options(model), **across, **bare) as llm:
        return {"ms": {n: step_ms(llm, n) for n in BATCHES}} if model else {"tokens": answers(llm)}


def answers(llm: LLM) -> list[list[int]]:
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    greedy = llm.chat(chats, SamplingParams(temperature=0.0, max_tokens=48), use_tqdm=False)
    drawn = llm.chat(chats, SamplingParams(temperature=1.0, seed=7, max_tokens=48), use_tqdm=False)
    return [result.outputs[0].token_ids for result in [*greedy, *drawn]]


def step_ms(llm: LLM, batch: int) -> float:
    rng = random.Random(batch)

    def seconds(output: int) -> float:
        prompts = [[rng.randrange(1000, llm.config.model.vocab_size - 8) for _ in range(128)] for _ in range(batch)]
        began = time.perf_counter()
        llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True), use_tqdm=False)
        return time.perf_counter() - began

    seconds(17)  # compiles and captures
    rounds = [(seconds(1), seconds(1 + STEPS)) for _ in range(3)]
    return sorted(1e3 * (whole - first) / STEPS for first, whole in rounds)[1]


# ------------------------------------------------------------------------------------------------ two hosts


def sh(command: str) -> None:
    subprocess.run(command, shell=True, check=True)


@contextmanager
def two_hosts() -> Iterator[None]:
    """Namespaces remuda0 and remuda1, each with one end of a veth pair."""
    for host in (0, 1):
        sh(f"ip netns add remuda{host}")
    try:
        sh("ip link add rv0 netns remuda0 type veth peer name rv1 netns remuda1")
        for host in (0, 1):
            sh(f"ip -n remuda{host} addr add {NETWORK}.{host + 1}/24 dev rv{host}")
            sh(f"ip -n remuda{host} link set rv{host} up && ip -n remuda{host} link set lo up")
        yield
    finally:
        for host in (0, 1):
            sh(f"ip netns del remuda{host}")


def on_host(host: int, command: Sequence[str], **keywords: Any) -> subprocess.Popen[str]:
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": f"{2 * host},{2 * host + 1}", "NCCL_HOSTID": f"remuda{host}", "NCCL_IB_DISABLE": "1",
        "NCCL_SOCKET_IFNAME": f"rv{host}", "GLOO_SOCKET_IFNAME": f"rv{host}",
    }  # fmt: skip
    return subprocess.Popen(["ip", "netns", "exec", f"remuda{host}", *command], env=environment, text=True, **keywords)


def on_two_hosts(model: str | None) -> dict[str, Any]:
    flags = [word for key, value in engine_options(model).items() for word in _flag(key, value)]
    join = [sys.executable, "-m", "remuda", "serve", *([model] if model else []), *flags]
    join += ["--nnodes", "2", "--node-rank", "1", "--master-addr", f"{NETWORK}.1"]
    other = on_host(1, join)
    try:
        return _result(on_host(0, _measure_command(model, 2), stdout=subprocess.PIPE))
    finally:
        try:
            other.wait(20)
        except subprocess.TimeoutExpired:
            other.kill()


def _flag(key: str, value: object) -> list[str]:
    name = key.replace("_", "-")
    return [f"--{name}" if value else f"--no-{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]


def _measure_command(model: str | None, nnodes: int) -> list[str]:
    return [sys.executable, __file__, model or "demo", "-", "--measure", str(nnodes)]


def _result(process: subprocess.Popen[str]) -> dict[str, Any]:
    try:
        output, _ = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise SystemExit(f"not done after {LIMIT_S} s") from None
    if process.returncode:
        raise SystemExit(f"the engine ended with exit code {process.returncode}")
    return json.loads(output.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(None if args.model == "demo" else args.model, args.measure)), flush=True)
        return 0

    def report(**row: Any) -> None:
        print(json.dumps(row), flush=True)
        with Path(args.out).open("a") as file:
            file.write(json.dumps(row) + "\n")

    def here(model: str | None) -> dict[str, Any]:
        return _result(subprocess.Popen(_measure_command(model, 1), stdout=subprocess.PIPE, text=True))

    with two_hosts():
        one, two = here(None), on_two_hosts(None)
        equal = one["tokens"] == two["tokens"]
        report(work="tokens of the demo model, greedy and drawn", equal=equal)
        one, two = here(args.model), on_two_hosts(args.model)
    for batch, alone_ms in one["ms"].items():
        apart_ms = two["ms"][batch]
        extra_us = round(1e3 * (apart_ms - alone_ms), 1)
        report(work=f"b{batch}", one_host_ms=alone_ms, two_hosts_ms=apart_ms, extra_us_per_step=extra_us)
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
