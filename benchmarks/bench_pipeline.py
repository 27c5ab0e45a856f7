"""Utilisation of the pipeline's stages, with each stage's compute replaced by a wait of modelled length.

    python benchmarks/bench_pipeline.py [--stages 4] [--step-ms 5] [--running 64] [--seconds 10] [--json out.json]

Engine, plans, rank processes, transport and token feedback are the real ones; only the model sleeps. Two loads, both
closed loops that replace every finished request at once: decodes with short prompts, all steps equally long, and the
same with every tenth prompt 1 to 8 K tokens long, which take time by their tokens. A stage is busy for the modelled
length of its steps; all else is a bubble. Needs a quiet machine: a stage that wakes late delays them all.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from remuda.config.engine import CacheConfig, EngineConfig, ParallelConfig, SchedulerConfig, SimulationConfig
from remuda.config.model import LayerConfig, ModelConfig
from remuda.engine.core import EngineCore
from remuda.kv.specs import ChunkedLocal, FullAttention
from remuda.launch.local import LocalReplica
from remuda.protocol.request import EngineRequest
from remuda.protocol.sampling import SamplingParams

BARS = {"decode": 0.95, "mixed": 0.90}
WARM_UP_S = 1.5
TIMELINE_MS = 120.0
VOCAB = 1024


@dataclass(frozen=True)
class Interval:
    """A micro-batch in a stage: when it began, when it should have ended, what it was."""

    start_s: float
    modelled_end_s: float
    decode_rows: int
    prefill_tokens: int


def model_config(layers: int) -> ModelConfig:
    """Llama-4-like groups and small tensors: nothing of it is computed."""
    kinds = [FullAttention() if i % 4 == 3 else ChunkedLocal(1024) for i in range(layers)]
    return ModelConfig(
        path="simulated", architecture="Llama4ForCausalLM", dtype="float32", checkpoint_dtype="float32", hidden_size=64,
        num_heads=8, num_kv_heads=1, head_dim=16, intermediate_size=64, vocab_size=VOCAB, max_position_embeddings=16384,
        rms_norm_eps=1e-5, rope_theta=1e4, rope_scaling=None, rope_interleaved=True,
        layers=tuple(LayerConfig(kind, True, False, False, False) for kind in kinds),
        temperature_floor=1.0, temperature_scale=0.0, tie_word_embeddings=False, moe=None, vision=None,
        image_tokens=None, quant=None, bos_token_id=None, eos_token_ids=(),
    )  # fmt: skip


def engine_config(args: argparse.Namespace, trace_dir: str, prefill_token_ms: float) -> EngineConfig:
    return EngineConfig(
        model=model_config(4 * args.stages),
        parallel=ParallelConfig(pipeline_parallel_size=args.stages, layer_partition=(4,) * args.stages),
        cache=CacheConfig(num_pages_override=65536, enable_prefix_caching=False),
        scheduler=SchedulerConfig(
            max_num_seqs=args.running, max_num_batched_tokens=args.max_num_batched_tokens, max_model_len=16384
        ),
        native_kernels="off",
        simulation=SimulationConfig(base_ms=args.step_ms, prefill_token_ms=prefill_token_ms, trace_dir=trace_dir),
    )


class Load:
    """Keeps `running` requests open."""

    def __init__(self, core: EngineCore, running: int, long_share: float) -> None:
        self._core = core
        self._running = running
        self._long_share = long_share
        self._random = random.Random(0)
        self._tokens = [self._random.randrange(VOCAB) for _ in range(1 << 16)]  # drawn now: prompts are slices of it
        self._added = 0

    def fill(self, finished: int) -> None:
        """Replace what finished (at first: everything)."""
        for _ in range(finished):
            rng = self._random
            long = rng.random() < self._long_share
            prompt = rng.randint(1024, 8192) if long else rng.randint(16, 128)
            sampling = SamplingParams(temperature=0.0, max_tokens=rng.randint(32, 256), ignore_eos=True)
            start = rng.randrange(len(self._tokens) - prompt)
            tokens = self._tokens[start : start + prompt]
            self._core.add(EngineRequest(f"request-{self._added}", tokens, sampling, time.monotonic()))
            self._added += 1

    def run(self, seconds: float) -> tuple[float, float, int]:
        """(start, end of the measured window, tokens generated in it)."""
        self.fill(self._running)
        begin = time.monotonic() + WARM_UP_S
        end = begin + seconds
        tokens = 0
        while (now := time.monotonic()) < end:
            outputs = self._core.step(block=True)
            if outputs is None:
                continue
            if now >= begin:
                tokens += sum(len(output.token_ids) for output in outputs.outputs)
            self.fill(sum(output.finish_reason is not None for output in outputs.outputs))
        return begin, end, tokens


def read_intervals(trace_dir: str, stages: int, simulation: SimulationConfig) -> list[list[Interval]]:
    """Per stage, what its rank has written; lengths as modelled, so that a late wake-up counts as a bubble."""
    found = []
    for stage in range(stages):
        entries = json.loads((Path(trace_dir) / f"stage-{stage}.json").read_text())
        found.append([])
        for entry in entries:
            rows, tokens = entry["decode_rows"], entry["prefill_tokens"]
            length_ms = simulation.base_ms + simulation.row_ms * rows + simulation.prefill_token_ms * tokens
            found[-1].append(Interval(entry["start_s"], entry["start_s"] + length_ms * 1e-3, rows, tokens))
    return found


def utilisation(intervals: list[Interval], begin: float, end: float) -> float:
    busy = sum(max(0.0, min(i.modelled_end_s, end) - max(i.start_s, begin)) for i in intervals)
    return busy / (end - begin)


def timeline(stages: list[list[Interval]], begin: float, width_ms: float, columns: int = 120) -> str:
    """One line per stage: D decode, P prefill, M both, '.' idle for most of the column."""
    step_s = width_ms * 1e-3 / columns
    lines = []
    for number, intervals in enumerate(stages):
        cells = []
        for column in range(columns):
            left = begin + column * step_s
            inside = [i for i in intervals if i.start_s < left + step_s and i.modelled_end_s > left]
            busy = sum(min(i.modelled_end_s, left + step_s) - max(i.start_s, left) for i in inside)
            cells.append(_symbol(inside[-1]) if busy > step_s / 2 else ".")
        lines.append(f"  stage {number} |{''.join(cells)}|")
    return "\n".join([*lines, f"          0 {'ms'.rjust(columns - 12)} {width_ms:>8.0f}"])


def _symbol(interval: Interval) -> str:
    if interval.prefill_tokens:
        return "M" if interval.decode_rows else "P"
    return "D"


def measure(args: argparse.Namespace, name: str) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as trace_dir:
        config = engine_config(args, trace_dir, args.prefill_token_ms if name == "mixed" else 0.0)
        assert config.simulation is not None
        with LocalReplica(config) as replica:
            load = Load(replica.core, args.running, args.long_share if name == "mixed" else 0.0)
            begin, end, tokens = load.run(args.seconds)
        stages = read_intervals(trace_dir, args.stages, config.simulation)
    shares = [utilisation(intervals, begin, end) for intervals in stages]
    steps = sum(begin <= interval.start_s < end for interval in stages[0])
    print(f"\n{name}: {tokens / args.seconds:,.0f} tokens/s, {steps / args.seconds:.0f} steps/s")
    for stage, share in enumerate(shares):
        print(f"  stage {stage}  {share:6.1%} busy")
    mean = sum(shares) / len(shares)
    print(f"  mean     {mean:6.1%}   bar {BARS[name]:.0%}   {'reached' if mean >= BARS[name] else 'MISSED'}")
    print(timeline(stages, begin + args.seconds / 2, TIMELINE_MS))
    return {"load": name, "stages": shares, "mean": mean, "bar": BARS[name], "tokens_per_s": tokens / args.seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--step-ms", type=float, default=5.0, help="modelled length of a decode step in each stage")
    parser.add_argument("--prefill-token-ms", type=float, default=0.01, help="mixed load: per prompt token of a step")
    parser.add_argument("--running", type=int, default=64)
    parser.add_argument("--long-share", type=float, default=0.1, help="share of 1-8K prompts in the mixed load")
    parser.add_argument("--max-num-batched-tokens", type=int, default=2048)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    args = parser.parse_args()
    results = [measure(args, name) for name in BARS]
    if args.json:
        args.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
