"""`remuda bench throughput` and `remuda bench latency`: a local model, no server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from remuda.cli.bench.bandwidth import copy_bytes_per_s
from remuda.cli.bench.datasets import from_file, random_ids
from remuda.cli.bench.metrics import check_writable, percentile
from remuda.config.arguments import OFFLINE_FLAGS, Flag, FlagGroup, count, share, whole
from remuda.config.parser import FlagParser
from remuda.hub.source import MODEL_HELP

RESULT = FlagGroup(
    "result",
    (
        Flag("output-json", "also write the figures to this file", metavar="FILE"),
        Flag("json", "print the figures as JSON only", bool, False),
        Flag("config", "YAML file of these flags", metavar="FILE"),
    ),
)
THROUGHPUT = FlagGroup(
    "load",
    (
        Flag("num-prompts", "prompts in all", count, 100, metavar="N"),
        Flag("input-len", "tokens of a random prompt", count, 256, metavar="TOKENS"),
        Flag("output-len", "tokens made for each", count, 128, metavar="TOKENS"),
        Flag("random-range-ratio", "lengths vary by this share", share, 0.0, metavar="RATIO"),
        Flag(
            "dataset-path", 'JSON lines with "prompt", or a ShareGPT-like list; default: random prompts', metavar="FILE"
        ),
    ),
)
LATENCY = FlagGroup(
    "load",
    (
        Flag("batch-size", "prompts run together", count, 8, metavar="N"),
        Flag("input-len", "tokens of a prompt", count, 32, metavar="TOKENS"),
        Flag("output-len", "tokens made for each", count, 128, metavar="TOKENS"),
        Flag("num-iters-warmup", "batches before the clock starts", whole, 2, metavar="N"),
        Flag("num-iters", "batches measured", count, 10, metavar="N"),
    ),
)


def run_throughput(argv: Sequence[str]) -> int:
    return _run(argv, "throughput", "Tokens per second of many prompts together.", THROUGHPUT, _throughput)


def run_latency(argv: Sequence[str]) -> int:
    return _run(argv, "latency", "Seconds for one batch of prompts.", LATENCY, _latency)


def _run(
    argv: Sequence[str],
    kind: str,
    about: str,
    load: FlagGroup,
    measure: Callable[[Any, dict[str, Any]], dict[str, Any]],
) -> int:
    parser = FlagParser(f"remuda bench {kind}", about, (load, RESULT, *OFFLINE_FLAGS), operand="[MODEL]")
    parser.add_argument("model", nargs="?", help=MODEL_HELP)
    options = parser.read(argv)
    from remuda.llm import LLM

    engine = {flag.key: options[flag.key] for group in OFFLINE_FLAGS for flag in group.flags}
    check_writable(options["output_json"])
    with LLM(options["model"], **engine) as llm:
        figures = measure(llm, options)
    if options["json"]:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{key:<28}{value:>14,}" for key, value in figures.items()))
    if options["output_json"]:
        Path(options["output_json"]).write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def _throughput(llm: Any, options: dict[str, Any]) -> dict[str, Any]:
    from remuda.protocol.sampling import SamplingParams

    number, output, seed = options["num_prompts"], options["output_len"], options["seed"]
    if options["dataset_path"]:
        samples = from_file(Path(options["dataset_path"]), number, output, seed)
        prompts: list[Any] = [sample.prompt for sample in samples]
        lengths = [sample.output_tokens for sample in samples]
    else:
        ratio = options["random_range_ratio"]
        prompts = random_ids(number, options["input_len"], llm.config.model.vocab_size, seed, ratio)
        lengths = [output] * number
    params = [SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True) for length in lengths]
    started = time.perf_counter()
    results = llm.generate(prompts, params, use_tqdm=not options["json"])
    elapsed = time.perf_counter() - started
    tokens_in = sum(len(result.prompt_token_ids) for result in results)
    tokens_out = sum(len(result.outputs[0].token_ids) for result in results)
    return {
        "elapsed_time": round(elapsed, 3), "num_requests": number,
        "prompt_tokens": tokens_in, "output_tokens": tokens_out,
        "requests_per_second": round(number / elapsed, 3),
        "output_tokens_per_second": round(tokens_out / elapsed, 1),
        "tokens_per_second": round((tokens_in + tokens_out) / elapsed, 1),
    }  # fmt: skip


def _latency(llm: Any, options: dict[str, Any]) -> dict[str, Any]:
    from remuda.protocol.sampling import SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=options["output_len"], ignore_eos=True)
    seconds = []
    for i in range(options["num_iters_warmup"] + options["num_iters"]):
        # Fresh prompts each time, so that the prefix cache has nothing to give.
        prompts = random_ids(options["batch_size"], options["input_len"], llm.config.model.vocab_size, i)
        started = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        seconds.append(time.perf_counter() - started)
    measured = sorted(seconds[options["num_iters_warmup"] :])
    figures = {"avg_latency_s": sum(measured) / len(measured), "min_latency_s": measured[0]}
    figures |= {f"p{p}_latency_s": percentile(measured, p) for p in (50, 90, 99)}
    floor_s = _decode_floor_s(llm, options["batch_size"], options["input_len"], options["output_len"])
    if floor_s is not None:
        figures |= {"decode_floor_s": floor_s, "share_of_decode_floor": floor_s / figures["p50_latency_s"]}
    return {key: round(value, 4) for key, value in figures.items()}


def _decode_floor_s(llm: Any, batch: int, prompt: int, output: int) -> float | None:
    """The bandwidth floor of the decode steps of a batch; None on CPU, whose copies say nothing of many cores."""
    from remuda.planner.floor import DecodeFloor

    if llm.config.device != "cuda":
        return None
    floor = DecodeFloor(llm.config.model, llm.config.parallel)
    return output * floor.step_ms(batch, prompt + output // 2, copy_bytes_per_s()) / 1e3
