"""Where a decode step's time goes: one rank's graphs under torch's profiler, with random weights.

python benchmarks/gpu/profile_step.py CONFIG_DIR OUT.json [--batch 1,32,128] [--context 256] [--no-pdl]
python benchmarks/gpu/profile_step.py --plot OUT.json OUT.png

For each batch size: milliseconds of a step (many in a row, two in flight, as the engine runs them), kernels of a step
and a layer, the share of the step in which some kernel runs, the gap between steps, and time by kernel: how long it is
on the card, of which it waits for its predecessor when it has started early, and how much later the step ends for it.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

_STEPS = 60  # timed
_PROFILED = 8
_WARM = 4  # the second use of a bucket captures its graph
_PROMPT = (4, 2048)  # rows and tokens of the timed prefill
_MARGIN = 160  # positions beyond the context that the steps may use


@dataclass(frozen=True)
class Kernel:
    """A kernel of one step, in microseconds from the step's first."""

    name: str
    start_us: float
    us: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs=2)
    parser.add_argument("--plot", action="store_true")
    parser.add_argument("--batch", default="1,32,128")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--no-pdl", action="store_true", help="kernels wait for the end of those before them")
    options = parser.parse_args()
    if options.plot:
        plot(json.loads(Path(options.paths[0]).read_text()), options.paths[1])
        return
    batches = [int(size) for size in options.batch.split(",")]
    measure(options.paths[0], Path(options.paths[1]), batches, options.context, not options.no_pdl)


# ------------------------------------------------------------------------------------------------ one rank


def measure(model: str, target: Path, batches: list[int], context: int, pdl: bool) -> None:
    """Writes what it has after each batch size."""
    import torch

    from remuda.kernels.select import cuda_table

    table = mock.patch("remuda.models.interfaces.kernel_table", lambda device, dtype: cuda_table(pdl))
    with table, torch.inference_mode():
        rank = Rank(model, max(batches), context)
        report: dict[str, Any] = {
            "model": Path(model).name,
            "card": torch.cuda.get_device_name(),
            "pdl": pdl,
            "layers": len(rank.worker.topology.layers),
            "context": context,
            "prefill_tokens_per_s": rank.prefill(),
            "decode": [],
        }
        for batch in batches:
            result = rank.decode(batch)
            report["decode"].append(result)
            line = {key: value for key, value in result.items() if key not in ("timeline", "kernels")}
            print(report["model"], f"pdl {pdl}", json.dumps(line), flush=True)
            target.write_text(json.dumps(report, indent=1))


class Rank:
    """A worker without an engine: plans are made here, and nobody reads tokens."""

    def __init__(self, model: str, rows: int, context: int) -> None:
        from remuda.config.arguments import OFFLINE_FLAGS
        from remuda.config.parser import options_from_keywords
        from remuda.executor.sizing import agree_on_pages
        from remuda.launch.resolve import engine_config
        from remuda.parallel.groups import single_rank_groups
        from remuda.parallel.topology import topology_of
        from remuda.worker.worker import Worker

        longest = max(context + _MARGIN, _PROMPT[1])
        flags = {
            "max_num_seqs": max(rows, _PROMPT[0]), "max_model_len": longest,
            "max_num_batched_tokens": _PROMPT[0] * _PROMPT[1], "device": "cuda", "load_format": "dummy",
            "distributed_executor_backend": "inproc",
        }  # fmt: skip
        config = engine_config(options_from_keywords(OFFLINE_FLAGS, flags) | {"model": model})
        self.worker = Worker(config, topology_of(0, config.parallel), single_rank_groups())
        self._config, self._context, self._longest = config, context, longest
        self._pages = agree_on_pages(config, [self.worker.load()])
        self.worker.allocate(self._pages)
        self.worker.self_test()
        self._step = 0

    def _new(self, slot: int, length: int, computed: int) -> Any:
        from remuda.protocol.sampling import SamplingParams
        from remuda.protocol.step import NewSequence

        vocab, block = self._config.model.vocab_size, self._config.cache.block_size
        blocks = -(-self._longest // block)
        pages = []
        for group in range(len(self._config.model.kv_groups)):
            first = (slot * len(self._config.model.kv_groups) + group) * blocks
            pages.append([1 + (first + page) % (self._pages - 1) for page in range(blocks)])
        tokens = [(31 * slot + 17 * position + 5) % vocab for position in range(length)]
        params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=_MARGIN)
        return NewSequence(slot, tokens, length, computed, pages, params)

    def _plan(self, counts: list[int], new: list[Any]) -> Any:
        from remuda.protocol.step import StepPlan

        self._step += 1
        return StepPlan(step=self._step, slots=list(range(len(counts))), counts=counts, new=new)

    def _run(self, counts: list[int], steps: int, new: Sequence[Any] = ()) -> list[int]:
        """Two steps in flight, as the engine has them; the last step's tokens."""
        worker, results = self.worker, []
        for step in range(steps):
            worker.launch(worker.prepare(self._plan(counts, list(new) if step == 0 else [])))
            if len(worker.launched) == worker.runner.max_launched:
                results.append(worker.finish())
        while worker.launched:
            results.append(worker.finish())
        return results[-1].tokens

    def prefill(self) -> float:
        rows, length = _PROMPT
        best = float("inf")
        for _ in range(3):
            new = [self._new(slot, length, 0) for slot in range(rows)]
            begin = time.perf_counter()
            self._run([length] * rows, 1, new)
            best = min(best, time.perf_counter() - begin)
        return rows * length / best

    def decode(self, batch: int) -> dict[str, Any]:
        import torch

        counts = [1] * batch
        self._run(counts, _WARM, [self._new(slot, self._context, self._context - 1) for slot in range(batch)])
        begin = time.perf_counter()
        tokens = self._run(counts, _STEPS)
        step_ms = (time.perf_counter() - begin) / _STEPS * 1000
        activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities) as profiler:
            self._run(counts, _PROFILED)
            torch.cuda.synchronize()
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            profiler.export_chrome_trace(file.name)
            trace = json.loads(Path(file.name).read_text())
        found = {"batch": batch, "step_ms": round(step_ms, 4), "distinct_tokens": len(set(tokens))}
        return found | summary(trace["traceEvents"], len(self.worker.topology.layers))


# ------------------------------------------------------------------------------------------------ what a trace says


def summary(events: list[dict[str, Any]], layers: int) -> dict[str, Any]:
    steps = list(steps_of(events))[1:-1]  # those that begin and end beside others
    busy_us, gap_us, on_card_us, added_us = [], [], defaultdict(float), defaultdict(float)
    for (kernels, length_us), following in zip(steps, [*steps[1:], None], strict=True):
        busy = covered(kernels)
        busy_us.append(busy)
        if following is not None:
            gap_us.append(length_us - (kernels[-1].start_us + kernels[-1].us))
        for kernel in kernels:
            on_card_us[kernel.name] += kernel.us / len(steps)
        for name, us in added(kernels):
            added_us[name] += us / len(steps)
    middle = statistics.median(length_us for _, length_us in steps)
    kernels = steps[len(steps) // 2][0]
    counts = defaultdict(int)
    for kernel in kernels:
        counts[kernel.name] += 1
    return {
        "profiled_step_ms": round(middle / 1000, 4),
        "busy_share": round(statistics.median(busy_us) / middle, 4),
        "gap_us": round(statistics.median(gap_us), 2),
        "kernels_per_step": len(kernels),
        "kernels_per_layer": round(len(kernels) / layers, 2),
        "kernels": [
            {"name": name, "count": counts[name], "on_card_us": round(on_card_us[name], 1), "added_us": round(us, 1)}
            for name, us in sorted(added_us.items(), key=lambda item: -item[1])
        ],
        "timeline": [asdict(kernel) for kernel in kernels],
    }


def steps_of(events: list[dict[str, Any]]) -> Iterator[tuple[list[Kernel], float]]:
    """(kernels and copies of a step, microseconds until the next step's first): a graph's work carries its launch."""
    kinds = ("kernel", "gpu_memcpy", "gpu_memset")
    work = sorted((e for e in events if e.get("cat") in kinds), key=lambda e: e["ts"])
    launches: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for event in work:
        launches[event["args"]["correlation"]].append(event)
    graphs = sorted((group for group in launches.values() if len(group) > 20), key=lambda group: group[0]["ts"])
    for group, following in itertools.pairwise(graphs):
        begin = group[0]["ts"]
        kernels = [Kernel(short(e["name"]), e["ts"] - begin, e["dur"]) for e in group]
        yield kernels, following[0]["ts"] - begin


def covered(kernels: list[Kernel]) -> float:
    """Microseconds in which at least one kernel runs."""
    total, end = 0.0, 0.0
    for kernel in kernels:
        total += max(0.0, kernel.start_us + kernel.us - max(end, kernel.start_us))
        end = max(end, kernel.start_us + kernel.us)
    return total


def added(kernels: list[Kernel]) -> Iterator[tuple[str, float]]:
    """By how much each kernel puts off the end of all that are done by then."""
    end = 0.0
    for kernel in sorted(kernels, key=lambda kernel: kernel.start_us + kernel.us):
        yield kernel.name, kernel.start_us + kernel.us - end
        end = kernel.start_us + kernel.us


@functools.cache
def short(name: str) -> str:
    for library in ("nvjet", "cutlass", "gemv", "splitK", "gemm"):
        if library in name and not name.startswith("_"):
            return name[:60]
    if name.startswith("void at::native::"):
        inner = [part for part in name.replace("<", " ").replace("(", " ").split() if "at::native::" in part]
        return "torch " + inner[-1].split("::")[-1][:40]
    return name[:60]


# ------------------------------------------------------------------------------------------------ pictures


def plot(report: dict[str, Any], target: str) -> None:
    """For each batch size: time by kernel, and two layers in the middle of a step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = report["decode"]
    figure, axes = pyplot.subplots(2, len(rows), figsize=(7 * len(rows), 9), squeeze=False)
    for column, result in enumerate(rows):
        bars, lanes = axes[0][column], axes[1][column]
        largest = result["kernels"][:14][::-1]
        bars.barh([f"{k['name'][:32]} x{k['count']}" for k in largest], [k["added_us"] for k in largest])
        bars.set_title(f"{report['model']}, batch {result['batch']}: {result['step_ms']} ms a step", fontsize=10)
        bars.set_xlabel("us by which a step is longer for it")
        _draw_layers(lanes, result, report["layers"])
    figure.tight_layout()
    figure.savefig(target, dpi=110)


def _draw_layers(lanes: Any, result: dict[str, Any], layers: int) -> None:
    per_layer = len(result["timeline"]) // layers
    middle = (layers // 2) * per_layer
    kernels = result["timeline"][middle : middle + 2 * per_layer]
    for lane, kernel in enumerate(kernels):
        lanes.barh(lane, kernel["us"], left=kernel["start_us"] - kernels[0]["start_us"])
    lanes.set_yticks(range(len(kernels)), [kernel["name"][:32] for kernel in kernels], fontsize=7)
    lanes.invert_yaxis()
    lanes.set_xlabel("us, two layers")


if __name__ == "__main__":
    main()
