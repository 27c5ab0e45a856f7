"""The control plane alone: requests through EngineCore with ranks that answer at once.

python benchmarks/bench_control_plane.py [--json] [--quick]

Bars: 150,000 tokens/s at 256 running requests with a step of at most 2 ms at the 99th percentile; schedule() at most
3 ms with 4,096 waiting and 1,024 running requests; the engine process well below 30 us of CPU per token at 32 running.
Times are this process's CPU time, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from remuda.config.engine import CacheConfig, EngineConfig, ParallelConfig, SchedulerConfig
from remuda.config.model import LayerConfig, ModelConfig
from remuda.engine.core import EngineCore
from remuda.engine.garbage import PacedGarbageCollector
from remuda.engine.process import run_engine
from remuda.engine.scheduler import ScheduledStep
from remuda.executor.noop import NoopExecutor
from remuda.kv.specs import ChunkedLocal, FullAttention
from remuda.protocol.request import EngineReady, EngineRequest, Shutdown, StepOutputs
from remuda.protocol.sampling import SamplingParams
from remuda.protocol.wire import client_side


@dataclass
class Row:
    what: str
    value: float
    unit: str
    bar: str
    ok: bool


def llama4_like() -> ModelConfig:
    """Four KV groups, as Llama 4 has them."""
    kinds = [ChunkedLocal(1000)] * 3 + [FullAttention()]
    return ModelConfig(
        path="", architecture="Llama4ForConditionalGeneration", dtype="bfloat16", checkpoint_dtype="bfloat16",
        hidden_size=1024, num_heads=8, num_kv_heads=8, head_dim=128, intermediate_size=4096, vocab_size=200_000,
        max_position_embeddings=1 << 20, rms_norm_eps=1e-5, rope_theta=5e5, rope_scaling=None, rope_interleaved=True,
        layers=tuple(LayerConfig(kind, True, False, False, False) for kind in kinds * 4),
        temperature_floor=0.0, temperature_scale=0.0, tie_word_embeddings=False, moe=None, vision=None,
        image_tokens=None, quant=None, bos_token_id=1, eos_token_ids=(2,),
    )  # fmt: skip


def config_of(stages: int = 1, **scheduler: int) -> EngineConfig:
    limits = {"max_num_seqs": 256, "max_num_batched_tokens": 8192, "max_model_len": 4096, "max_waiting": 8192}
    return EngineConfig(
        llama4_like(),
        ParallelConfig(pipeline_parallel_size=stages, layer_partition=(16 // stages,) * stages),
        CacheConfig(num_pages_override=1_000_000),
        SchedulerConfig(**limits | {"steps_in_flight": stages + 1} | scheduler),  # type: ignore[arg-type]
    )


def core_alone(config: EngineConfig) -> EngineCore:
    executor = NoopExecutor(config)
    return EngineCore(config, executor, executor.start(lambda _: None))


def make_request(number: int, prompt: list[int], outputs: int) -> EngineRequest:
    sampling = SamplingParams(max_tokens=outputs, seed=number, eos_token_ids=[2])
    return EngineRequest(f"request-{number}", prompt, sampling, 0.0)


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def steady_decode(stages: int, running: int, outputs: int, aligned: bool) -> tuple[float, float, float]:
    """Tokens/s, and milliseconds of a step at the median and at the 99th percentile, with `running` requests.

    `aligned`: all prompts are equally long, so that every sequence needs pages in the same step.
    """
    rng = random.Random(0)
    config = config_of(stages)
    core = core_alone(config)
    for number in range(running):
        length = 128 if aligned else rng.randint(16, 512)
        core.add(make_request(number, [rng.randrange(3, 1000) for _ in range(length)], outputs))
    garbage = PacedGarbageCollector()
    while core.scheduler.waiting or core.stats().generated_tokens < running:
        core.step()
    tokens, durations_s = 0, []
    began = time.process_time()
    while core.stats().running == running:
        start = time.process_time()
        result = core.step()
        durations_s.append(time.process_time() - start)
        tokens += len(result.outputs) if result else 0
        garbage.after_step()
    rate = tokens / (time.process_time() - began)
    return rate, quantile(durations_s, 0.5) * 1e3, quantile(durations_s, 0.99) * 1e3


def churn(concurrency: int, requests: int) -> float:
    """Requests/s of short chats: a common prefix of 256 tokens, 64 more, 32 outputs. Admission, hits and endings."""
    rng = random.Random(0)
    config = config_of(max_num_seqs=concurrency)
    core = core_alone(config)
    prefix = [rng.randrange(3, 1000) for _ in range(256)]
    for number in range(requests):
        core.add(make_request(number, prefix + [rng.randrange(3, 1000) for _ in range(64)], 32))
    began = time.process_time()
    while core.has_work:
        core.step()
    return requests / (time.process_time() - began)


def crowded_schedule(waiting: int, running: int) -> tuple[float, float]:
    """Milliseconds of schedule() with a long queue behind a full batch: the median, and the worst of 64 steps.

    In every 16th step all sequences need pages. The best of 5 trials counts.
    """
    trials = []
    for _ in range(5):
        config = config_of(max_num_seqs=running, max_num_batched_tokens=max(8192, 64 * running))
        core = core_alone(config)
        for number in range(running + waiting):
            core.add(make_request(number, [3 + number % 1000] * 32, 200))
        core.step()
        assert (core.stats().running, core.stats().waiting) == (running, waiting)
        durations_s = []
        schedule = core.scheduler.schedule

        def timed(schedule: Callable[[], ScheduledStep | None] = schedule, into: list[float] = durations_s):  # type: ignore[no-untyped-def]
            start = time.process_time()
            scheduled = schedule()
            into.append(time.process_time() - start)
            return scheduled

        core.scheduler.schedule = timed  # type: ignore[method-assign]
        while len(durations_s) < 64:
            core.step()
        trials.append((quantile(durations_s, 0.5) * 1e3, max(durations_s) * 1e3))
    return min(median for median, _ in trials), min(worst for _, worst in trials)


def process_cpu_per_token(running: int, outputs: int) -> float:
    """Microseconds of CPU that the engine process spends per token that its client receives, start-up left out."""
    config = config_of(max_num_seqs=running)
    ours, theirs = socket.socketpair()

    def serve() -> None:
        ours.close()
        run_engine(config, NoopExecutor(config), theirs)

    process = multiprocessing.get_context("fork").Process(target=serve)
    process.start()
    theirs.close()
    channel = client_side(ours)
    assert isinstance(channel.receive(), EngineReady)
    before_s = _cpu_s(process.pid)
    rng = random.Random(0)
    for number in range(running):
        channel.send(make_request(number, [rng.randrange(3, 1000) for _ in range(128)], outputs))
    received, expected = 0, running * outputs
    while received < expected:
        message = channel.receive()
        received += sum(len(output.token_ids) for output in message.outputs) if isinstance(message, StepOutputs) else 0
    spent_s = _cpu_s(process.pid) - before_s
    channel.send(Shutdown())
    process.join()
    return spent_s / expected * 1e6


def _cpu_s(pid: int | None) -> float:
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(quick: bool) -> list[Row]:
    rows = []
    outputs = 200 if quick else 2000
    for stages, aligned in ((1, False), (1, True), (4, False)):
        rate, median_ms, p99_ms = steady_decode(stages, 256, outputs, aligned)
        name = f"256 running, PP {stages}" + (", page borders aligned" if aligned else "")
        rows.append(Row(f"{name}: tokens", rate, "/s", ">= 150,000", rate >= 150_000))
        rows.append(Row(f"{name}: step p50", median_ms, "ms", "", True))
        rows.append(Row(f"{name}: step p99", p99_ms, "ms", "<= 2", p99_ms <= 2))
    (small, _), (large, worst) = crowded_schedule(1024, 256), crowded_schedule(4096, 1024)
    rows.append(Row("schedule(), 1,024 waiting, 256 running", small, "ms", "", True))
    rows.append(Row("schedule(), 4,096 waiting, 1,024 running", large, "ms", "<= 3", large <= 3))
    rows.append(Row("  its worst step (all need pages)", worst, "ms", "<= 3", worst <= 3))
    rows.append(Row("  growth for 4 x the requests", large / small, "x", "linear: <= 6", large <= 6 * small))
    rows.append(Row("short chats, common prefix, 64 at once", churn(64, 200 if quick else 2000), "/s", "", True))
    cpu_us = process_cpu_per_token(32, 200 if quick else 2000)
    rows.append(Row("engine process CPU, 32 running", cpu_us, "us/token", "< 30", cpu_us < 30))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--quick", action="store_true", help="short runs, to see that it works")
    options = parser.parse_args()
    rows = measure(options.quick)
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    print(f"{'what':<48} {'measured':>14} {'unit':<9} {'bar':<13} met")
    for row in rows:
        print(f"{row.what:<48} {row.value:>14,.3f} {row.unit:<9} {row.bar:<13} {'yes' if row.ok else 'NO'}")


if __name__ == "__main__":
    main()
