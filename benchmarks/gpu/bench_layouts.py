"""Decode, throughput and prefill of one model in one layout of GPUs, with random weights and no tokenizer.

    python benchmarks/gpu/bench_layouts.py MODEL_DIR OUT.jsonl -tp 2 -pp 2 --work b1,b32,b128,throughput,prefill

MODEL_DIR needs a config.json only. Prompts are random token ids, sampling is greedy, the end of sequence is ignored and
no prefix is cached. A row is appended to OUT.jsonl as soon as it is measured. Work:

    bN          milliseconds per decode step of N sequences: (time of 257 tokens - time of 1) / 256 after 128 tokens
    throughput  output tokens per second of 256 requests at once, 512 tokens in and 256 out
    prefill     prompt tokens per second of 64 requests of 4,096 tokens in and 1 out
    closedN     output tokens per second of N requests at once, 1,024 tokens in and 1,024 out
    longN:C     milliseconds per decode step of N sequences with C tokens in the cache, over 64 steps

Each is the median (a rate: the better) of some repetitions, after one that compiles and captures. The floor is
`remuda.planner.floor` at the copy bandwidth measured here; for rates it is the decode steps' alone.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remuda import LLM, SamplingParams
from remuda.cli.bench.bandwidth import copy_bytes_per_s
from remuda.planner.floor import DecodeFloor
from remuda.planner.gpus import visible_gpus
from remuda.protocol.errors import RemudaError

PROMPT, STEPS = 128, 256
LONG_STEPS = 64
Row = dict[str, Any]


@dataclass
class Bench:
    """A model that runs, and what its figures are held against."""

    llm: LLM
    floor: DecodeFloor
    bytes_per_s: float
    repetitions: int
    rng: random.Random

    def seconds(self, requests: int, prompt: int, output: int) -> float:
        """Of `requests` random prompts at once, until the last has ended."""
        vocab_size = self.llm.config.model.vocab_size
        first = min(1000, vocab_size // 4)
        prompts = [[self.rng.randrange(first, vocab_size - 8) for _ in range(prompt)] for _ in range(requests)]
        params = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True, detokenize=False)
        began = time.perf_counter()
        results = self.llm.generate(prompts, params, use_tqdm=False)
        elapsed = time.perf_counter() - began
        made = sum(len(result.outputs[0].token_ids) for result in results)
        assert made == requests * output, f"{made} tokens instead of {requests * output}"
        return elapsed

    def decode(self, batch: int, prompt: int = PROMPT, steps: int = STEPS) -> Row:
        self.seconds(batch, prompt, min(17, steps))
        first, whole = [], []
        for _ in range(self.repetitions):
            first.append(self.seconds(batch, prompt, 1))
            whole.append(self.seconds(batch, prompt, 1 + steps))
        all_ms = [1e3 * (b - a) / steps for a, b in zip(first, whole, strict=True)]
        ms = statistics.median(all_ms)
        floor_ms = self.floor.step_ms(batch, prompt + steps // 2, self.bytes_per_s)
        return {"value": ms, "unit": "ms/step", "all": all_ms, "floor": floor_ms, "share": floor_ms / ms,
                "first_s": first}  # fmt: skip

    def rate(self, requests: int, prompt: int, output: int) -> Row:
        """Output tokens per second; one shorter run first."""
        self.seconds(requests, prompt, 8)
        elapsed = [self.seconds(requests, prompt, output) for _ in range(max(1, self.repetitions - 1))]
        rates = [requests * output / seconds for seconds in elapsed]
        floor = requests * 1e3 / self.floor.step_ms(requests, prompt + output // 2, self.bytes_per_s)
        return {"value": max(rates), "unit": "output tok/s", "all": rates, "floor": floor, "share": max(rates) / floor}

    def prefill(self, requests: int, prompt: int) -> Row:
        self.seconds(4, prompt, 1)
        elapsed = [self.seconds(requests, prompt, 1) for _ in range(max(1, self.repetitions - 1))]
        rates = [requests * prompt / seconds for seconds in elapsed]
        return {"value": max(rates), "unit": "prompt tok/s", "all": rates}


def measure_of(work: str) -> Callable[[Bench], Row]:
    """What a name of --work asks for. Raises ValueError for an unknown one."""
    name, digits = work.rstrip("0123456789:"), work.lstrip("abcdefghijklmnopqrstuvwxyz")
    if name == "b" and digits.isdecimal():
        return lambda bench: bench.decode(int(digits))
    if name == "closed" and digits.isdecimal():
        return lambda bench: bench.rate(int(digits), 1024, 1024)
    if name == "long" and digits.count(":") == 1:
        batch, context = map(int, digits.split(":"))
        return lambda bench: bench.decode(batch, context - LONG_STEPS // 2, LONG_STEPS)
    if work == "throughput":
        return lambda bench: bench.rate(256, 512, 256)
    if work == "prefill":
        return lambda bench: bench.prefill(64, 4096)
    raise ValueError(f"--work {work}: write bN, throughput, prefill, closedN or longN:CONTEXT")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("-tp", "--tensor-parallel-size", type=int, default=1)
    parser.add_argument("-pp", "--pipeline-parallel-size", type=int, default=1)
    parser.add_argument("-ep", "--enable-expert-parallel", action="store_true")
    parser.add_argument("--work", default="b1,b32,b128,throughput,prefill")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--budget-s", type=float, default=float("inf"), help="begin nothing after so many seconds")
    parser.add_argument("--copy-gb-s", type=float, help="copy bandwidth of the card; default: measured")
    parser.add_argument("--max-model-len", type=int, default=8192)
    parser.add_argument("--max-num-batched-tokens", type=int, default=8192)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.92)
    parser.add_argument("--kv-cache-memory-bytes", type=int)
    parser.add_argument("--enforce-eager", action="store_true")
    parser.add_argument("--trace-dir", help="write when each card worked, for timeline.py")
    return parser.parse_args()


def attempt(measure: Callable[[Bench], Row], bench: Bench) -> Row:
    """The row, or its error: what follows needs a replica that lives, and says so itself."""
    try:
        return measure(bench)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}


ENGINE_OPTIONS = (
    "tensor_parallel_size", "pipeline_parallel_size", "enable_expert_parallel", "device", "max_model_len",
    "max_num_batched_tokens", "gpu_memory_utilization", "kv_cache_memory_bytes", "enforce_eager",
    "trace_dir",
)  # fmt: skip


def main() -> int:
    options = arguments()
    plan = [(work, measure_of(work)) for work in options.work.split(",")]
    began = time.perf_counter()
    about = {
        "model": options.model.resolve().name,
        "layout": f"TP{options.tensor_parallel_size} PP{options.pipeline_parallel_size}"
        + (" EP" if options.enable_expert_parallel else ""),
    }
    cards = visible_gpus()[: options.tensor_parallel_size * options.pipeline_parallel_size]
    about["cards"] = f"{len(cards)} x {cards[0].name}" if cards else "CPU"
    rows: list[Row] = []

    def report(**row: Any) -> None:
        row = about | {k: _short(v) for k, v in row.items()} | {"at_s": round(time.perf_counter() - began, 1)}
        rows.append(row)
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)

    bytes_per_s = 1e9 * options.copy_gb_s if options.copy_gb_s else copy_bytes_per_s()
    report(work="copy", value=bytes_per_s / 1e9, unit="GB/s")
    chosen = {key: value for key in ENGINE_OPTIONS if (value := getattr(options, key)) is not None}
    start = time.perf_counter()
    try:
        with LLM(str(options.model), load_format="dummy", skip_tokenizer_init=True, enable_prefix_caching=False,
                 max_num_seqs=256, **chosen) as llm:  # fmt: skip
            floor = DecodeFloor(llm.config.model, llm.config.parallel)
            report(work="start", value=time.perf_counter() - start, unit="s", pages=llm.stats().kv_pages_total,
                   partition=llm.config.parallel.layer_partition)  # fmt: skip
            bench = Bench(llm, floor, bytes_per_s, options.repetitions, random.Random(11))
            for work, measure in plan:
                if time.perf_counter() - began > options.budget_s:
                    report(work=work, error="no time left")
                else:
                    report(work=work, **attempt(measure, bench))
    except RemudaError as error:
        report(work="start", error=str(error)[:600])
    print(table(rows))
    return 0 if all("error" not in row for row in rows) else 1


def _short(value: Any) -> Any:
    """Four significant digits and more for large numbers."""
    if isinstance(value, float):
        return round(value, 4 if value < 100 else 1)
    return [_short(one) for one in value] if isinstance(value, list) else value


def table(rows: list[Row]) -> str:
    lines = [f"{'model':<26}{'layout':<10}{'work':<14}{'value':>12} {'unit':<14}{'floor':>10}{'share':>8}"]
    for row in rows:
        value = f"{row['value']:>12,.3f}" if "value" in row else f"{'-':>12}"
        floor = f"{row['floor']:>10,.3f}{row['share']:>8.0%}" if "floor" in row else ""
        lines.append(
            f"{row['model']:<26}{row['layout']:<10}{row['work']:<14}{value} "
            f"{row.get('unit', ''):<14}{floor}{row.get('error', '')}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
