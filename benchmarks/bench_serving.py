"""A server under closed-loop load: throughput, latencies, CPU time per output token by process, memory.

    python benchmarks/bench_serving.py MODEL [--tp N] [--pp N] [--concurrency 32] [--reps 3] [--json FILE]
    python benchmarks/bench_serving.py MODEL --peer NAME --command 'vllm serve MODEL --port {port} ...'

Load: `remuda bench serve`, streamed, random prompts of 32 tokens, 64 tokens out, end-of-sequence ignored, greedy. The
same client loads any other server with --command, so that both are measured alike. On a small machine the client takes
its share of the cores on both sides. Medians of the repeats; a first one warms.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from processes import cpu_by_title, median, memory_mib
from servers import RunningServer, serving

FIGURES = (
    "output_throughput", "mean_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "p99_tpot_ms", "mean_itl_ms", "p99_itl_ms",
)  # fmt: skip


def one_load(server: RunningServer, args: argparse.Namespace, prompts: int, seed: int) -> dict[str, Any]:
    before = cpu_by_title(server.pid)
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [
            sys.executable,
            "-m",
            "remuda",
            "bench",
            "serve",
            "--base-url",
            server.url,
            "--tokenizer",
            args.model,
        ]
        command += ["--num-prompts", str(prompts), "--max-concurrency", str(args.concurrency), "--seed", str(seed)]
        command += ["--random-input-len", str(args.input_len), "--random-output-len", str(args.output_len)]
        command += ["--ignore-eos", "--temperature", "0", "--json", "--save-result", "--result-filename", file.name]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        figures: dict[str, Any] = json.loads(Path(file.name).read_text())
    if figures["failed"]:
        raise SystemExit(f"{figures['failed']} requests failed: {figures.get('first_error')}")
    used = {name: seconds - before.get(name, 0.0) for name, seconds in cpu_by_title(server.pid).items()}
    figures["cpu_us_per_token"] = {
        name: round(1e6 * seconds / figures["total_output_tokens"], 1) for name, seconds in used.items()
    }
    return figures


def control_plane_us(by_title: dict[str, float]) -> float:
    """What the HTTP and the engine process take together."""
    return round(sum(us for name, us in by_title.items() if name in ("remuda: http", "remuda: engine")), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tp", default="1")
    parser.add_argument("--pp", default="1")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--input-len", type=int, default=32)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--peer", default="remuda")
    parser.add_argument("--command", help="another server to load; {port} is filled in")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    command = shlex.split(args.command) if args.command else [
        sys.executable, "-m", "remuda", "serve", args.model, "--host", "127.0.0.1", "--port", "{port}",
        "--tensor-parallel-size", args.tp, "--pipeline-parallel-size", args.pp, "--max-model-len", "1024",
        "--max-num-seqs", "64", "--no-enable-prefix-caching", "--kv-cache-memory-bytes", "1G",
        "--generation-config", "vllm", "--disable-uvicorn-access-log", "--native-kernels", "require",
    ]  # fmt: skip
    with serving(command) as server:
        one_load(server, args, 40, 0)
        runs = [one_load(server, args, args.prompts, seed) for seed in range(1, args.reps + 1)]
        memory = memory_mib(server.pid)
        start = server.start_to_first_token_s
    splits = [run["cpu_us_per_token"] for run in runs]
    result: dict[str, Any] = {
        "peer": args.peer, "bench": "serving", "model": Path(args.model).name, "opts": {"tp": args.tp, "pp": args.pp},
        "start_to_first_s": round(start, 2), **{name: median([run[name] for run in runs]) for name in FIGURES},
        "control_plane_us_per_token": median([control_plane_us(split) for split in splits]),
        "cpu_us_per_token": {n: median([split.get(n, 0.0) for split in splits]) for n in splits[0]}, **memory,
    }  # fmt: skip
    for key, value in result.items():
        print(f"{key:<28}{value}")
    print("RESULT " + json.dumps(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
