"""Routed experts on a GPU: every kernel in several static forms, checked and timed. Chooses `moe/triton/tuning.py`.

    python benchmarks/gpu/bench_moe.py OUT.json [--budget-s 190] [--shapes maverick-tp4 ...]

A form is timed as a CUDA graph of several calls, each with other experts, so that the second-level cache does not help.
GB/s counts the weights of the experts that were touched, as a share of a copy's rate (read + written) on the same card.
The table at the end has a line per shape and number of tokens: the fastest forms that were right; the file has all.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from remuda.kernels.linear.quantize import quantize_rows
from remuda.kernels.moe.triton import route_sigmoid, router_logits
from remuda.kernels.moe.triton.grouped import Tile, experts_grouped
from remuda.kernels.moe.triton.library import experts_library
from remuda.kernels.moe.triton.small import Stream, experts_small
from remuda.kernels.moe.triton.sort import sort_rows
from remuda.kernels.moe.triton.weights import FP8, ExpertWeights
from remuda.weights.dummy import fill_scale_, fill_weight_

Call = Callable[[ExpertWeights, torch.Tensor, torch.Tensor, torch.Tensor, bool], torch.Tensor]
TOKENS = (1, 2, 4, 8, 32, 128, 256, 2048, 8192)
BOUND = {"exact": 1e-2, "quantized": 6e-2}  # relative error against float32; quantized: float8 activations
CHECKED_TOKENS = 6


@dataclass(frozen=True)
class Shape:
    name: str
    experts: int
    hidden: int
    width: int
    top_k: int = 1
    weigh_input: bool = True


SHAPES = (
    Shape("maverick-tp4", 128, 5120, 2048),
    Shape("maverick-tp8", 128, 5120, 1024),
    Shape("maverick-tp2", 128, 5120, 4096),
    Shape("scout-tp4", 16, 5120, 2048),
    Shape("qwen3-30b", 128, 2048, 768, top_k=8, weigh_input=False),
    Shape("scout", 16, 5120, 8192),
    Shape("maverick", 128, 5120, 8192),
)
TINY = (Shape("tiny", 8, 2048, 2048), Shape("tiny-top8", 8, 2048, 2048, top_k=8, weigh_input=False))


@dataclass(frozen=True)
class Form:
    """One kernel in one static configuration, for `dtype` weights and rows per expert in `serves`."""

    name: str
    dtype: str
    call: Call
    max_rows: float = float("inf")  # rows (choices) of all experts
    per_expert: tuple[float, float] = (0, float("inf"))
    quantized: bool = False


@dataclass
class Row:
    shape: str
    dtype: str
    tokens: int
    form: str
    us: float = float("inf")
    gb_per_s: float = 0.0
    share_of_copy: float = 0.0
    tflop_per_s: float = 0.0
    error: float = float("nan")
    right: bool = False
    failure: str = ""


def small_forms() -> Iterator[Form]:
    streams = {
        "bf16": [(8, 1024, 4, 1), (4, 1024, 4, 1), (8, 2048, 8, 1), (8, 512, 4, 4), (4, 1024, 4, 3)],
        "fp8": [(8, 1024, 4, 1), (4, 2048, 4, 1), (8, 2048, 8, 1), (8, 1024, 4, 3), (4, 2048, 4, 3)],
    }
    for dtype, configurations in streams.items():
        for numbers in configurations:
            stream = Stream(*numbers)
            for pdl in (False, True):
                name = f"small {_label(numbers)}{' pdl' if pdl else ''}"
                yield Form(name, dtype, _small(stream, pdl), max_rows=64)


def grouped_forms() -> Iterator[Form]:
    """Numbers: rows, outputs, bytes of inputs, warps, stages."""
    plain, copied = False, True  # by whom the weight is fetched: loads, or the copy engine (TMA)
    forms = [
        (16, 64, 256, 4, 4, plain), (16, 64, 256, 4, 4, copied), (16, 128, 128, 4, 5, copied),
        (16, 32, 512, 4, 4, plain), (16, 128, 256, 4, 3, copied),
        (32, 64, 256, 4, 4, plain), (32, 128, 128, 4, 4, copied),
        (64, 128, 128, 4, 4, plain), (64, 128, 128, 4, 4, copied), (64, 256, 128, 8, 3, copied),
        (128, 256, 128, 8, 3, plain), (128, 256, 128, 8, 3, copied), (128, 128, 128, 8, 4, copied),
        (128, 128, 128, 4, 4, copied),
    ]  # fmt: skip
    for m, n, k_bytes, warps, stages, tma in forms:
        serves = {16: (0, 20), 32: (6, 70), 64: (30, 200), 128: (60, float("inf"))}[m]
        for dtype, itemsize, quantize in (("bf16", 2, False), ("fp8", 1, True)):
            tile = Tile(m, n, k_bytes // itemsize, warps, stages, tma=tma)
            name = f"grouped {_label((m, n, tile.block_k, warps, stages))}{' tma' if tma else ''}"
            yield Form(name, dtype, _grouped(tile, quantize), per_expert=serves, quantized=quantize)
    for m, serves in ((16, (0, 20)), (64, (30, 200))):  # float8 weights widened on the way
        for tma in (plain, copied):
            tile = Tile(m, 128 if m == 64 else 64, 128, 4, 4 if m == 16 else 3, tma=tma)
            name = f"widened {_label((m, tile.block_n, 128, 4, tile.num_stages))}{' tma' if tma else ''}"
            yield Form(name, "fp8", _grouped(tile, False), per_expert=serves)


def library_forms() -> Iterator[Form]:
    for dtype in ("bf16", "fp8"):
        yield Form("torch grouped", dtype, experts_library, per_expert=(0.9, float("inf")), quantized=dtype == "fp8")


def _label(numbers: tuple[int, ...]) -> str:
    *block, warps, stages = numbers
    return f"{'x'.join(map(str, block))} w{warps} s{stages}"


def _small(stream: Stream, pdl: bool) -> Call:
    return lambda weights, x, expert, weight, on_input: experts_small(
        weights, x, expert, weight, on_input, stream, stream, pdl
    )


def _grouped(tile: Tile, quantize: bool) -> Call:
    return lambda weights, x, expert, weight, on_input: experts_grouped(
        weights, x, expert, weight, on_input, tile, tile, quantize
    )


FORMS = (*small_forms(), *grouped_forms(), *library_forms())


def make_weights(shape: Shape, dtype: str) -> ExpertWeights:
    e, h, i = shape.experts, shape.hidden, shape.width
    stored = FP8 if dtype == "fp8" else torch.bfloat16
    gate_up = fill_weight_(torch.empty((e, 2 * i, h), dtype=stored, device="cuda"), h**-0.5)
    down = fill_weight_(torch.empty((e, h, i), dtype=stored, device="cuda"), i**-0.5)
    if dtype != "fp8":
        return ExpertWeights(gate_up, down)
    scales = [torch.empty((e, n), device="cuda") for n in (2 * i, h)]
    for scale, inputs in zip(scales, (h, i), strict=True):
        fill_scale_(scale, inputs**-0.5).mul_(torch.rand_like(scale) + 0.5)
    return ExpertWeights(gate_up, down, *scales)


@dataclass
class Batch:
    """One input and several routings, which take other experts each."""

    x_TH: torch.Tensor
    routes: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    @classmethod
    def random(cls, shape: Shape, tokens: int, calls: int) -> Batch:
        batch = cls(torch.randn(tokens, shape.hidden, device="cuda").bfloat16())
        order = torch.cat([torch.randperm(shape.experts, device="cuda") for _ in range(2)])
        for call in range(calls):
            chosen = tokens * shape.top_k
            if chosen <= min(16, shape.experts):  # never the experts of the call before
                expert = order[call * chosen % shape.experts :][:chosen].view(tokens, shape.top_k)
            else:
                expert = torch.rand(tokens, shape.experts, device="cuda").topk(shape.top_k).indices
            batch.routes.append((expert.contiguous(), torch.rand(tokens, shape.top_k, device="cuda") + 0.25))
        return batch

    def touched(self) -> float:
        """Distinct experts of a call, on average."""
        return sum(len(expert.unique()) for expert, _ in self.routes) / len(self.routes)


def reference(weights: ExpertWeights, batch: Batch, weigh_input: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(some tokens, their results for the first routing in float32)."""
    expert_Tk, weight_Tk = batch.routes[0]
    tokens = torch.randperm(len(expert_Tk), device="cuda")[:CHECKED_TOKENS]
    y = torch.zeros(len(tokens), batch.x_TH.shape[1], device="cuda")
    for place, token in enumerate(tokens.tolist()):
        for e, weight in zip(expert_Tk[token].tolist(), weight_Tk[token], strict=True):
            gate_up_JH, down_HI = weights.gate_up_EJH[e].float(), weights.down_EHI[e].float()
            if weights.gate_up_scale_EJ is not None and weights.down_scale_EH is not None:
                gate_up_JH *= weights.gate_up_scale_EJ[e][:, None]
                down_HI *= weights.down_scale_EH[e][:, None]
            pair = gate_up_JH @ (batch.x_TH[token].float() * (weight if weigh_input else 1))
            y[place] += down_HI @ (F.silu(pair[0::2]) * pair[1::2]) * (1 if weigh_input else weight)
    return tokens, y


def graph_us(call: Callable[[int], Any], calls: int) -> float:
    """Microseconds of a call, median of replays of a graph of `calls`."""
    for i in range(min(calls, 2)):
        call(i)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(calls):
            call(i)
    graph.replay()
    times = []
    for _ in range(5):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / calls)
    return sorted(times)[2]


def measure(form: Form, shape: Shape, weights: ExpertWeights, batch: Batch, want: Any, copy_rate: float) -> Row:
    tokens = len(batch.x_TH)
    row = Row(shape.name, form.dtype, tokens, form.name)

    def call(i: int) -> torch.Tensor:
        return form.call(weights, batch.x_TH, *batch.routes[i], shape.weigh_input)

    try:
        got = call(0)
        checked, y = want
        row.error = float((got[checked].float() - y).norm() / y.norm())
        row.right = row.error <= BOUND["quantized" if form.quantized else "exact"] and bool(got.isfinite().all())
        row.us = graph_us(call, len(batch.routes))
    except Exception as error:
        row.failure = f"{type(error).__name__}: {error}"[:400]
        return row
    row.gb_per_s = batch.touched() * weights.nbytes_per_expert / row.us * 1e-3
    row.share_of_copy = row.gb_per_s / copy_rate
    row.tflop_per_s = 6.0 * shape.hidden * shape.width * tokens * shape.top_k / row.us * 1e-6
    return row


def compile_all(forms: tuple[Form, ...]) -> None:
    """Every form once on tiny experts, many at a time: compilation would otherwise take most of the run."""
    jobs = []
    for shape in TINY:
        for dtype in ("bf16", "fp8"):
            weights, batch = make_weights(shape, dtype), Batch.random(shape, 8, 1)
            chosen = [form for form in forms if form.dtype == dtype]
            jobs += [(form, weights, batch, shape.weigh_input) for form in chosen]
    torch.cuda.synchronize()

    def run(job: tuple[Form, ExpertWeights, Batch, bool]) -> str:
        form, weights, batch, weigh_input = job
        try:
            form.call(weights, batch.x_TH, *batch.routes[0], weigh_input)
        except Exception as error:  # measured, and reported, again
            return f"{form.dtype} {form.name}: {type(error).__name__}: {str(error)[:200]}"
        return ""

    run(jobs[0])  # what Triton sets up once
    with ThreadPoolExecutor(16) as pool:
        print("\n".join(sorted({failure for failure in pool.map(run, jobs) if failure})), flush=True)
    torch.cuda.synchronize()


def serves(form: Form, shape: Shape, tokens: int) -> bool:
    rows = tokens * shape.top_k
    low, high = form.per_expert
    return rows <= form.max_rows and low <= rows / shape.experts <= high


def bench(shape: Shape, dtype: str, copy_rate: float, deadline: float) -> list[Row]:
    rows: list[Row] = []
    weights = make_weights(shape, dtype)
    for tokens in TOKENS:
        if time.monotonic() > deadline:
            print(f"out of time: {shape.name} {dtype} from {tokens} tokens on", flush=True)
            break
        batch = Batch.random(shape, tokens, calls=10 if tokens <= 256 else 3)
        want = reference(weights, batch, shape.weigh_input)
        for form in FORMS:
            if form.dtype == dtype and serves(form, shape, tokens):
                rows.append(measure(form, shape, weights, batch, want, copy_rate))
    return rows


def copy_gb_per_s() -> float:
    source = torch.empty(1 << 31, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * source.numel() / graph_us(lambda _: target.copy_(source), 4) * 1e-3


def other_kernels() -> dict[str, float]:
    """What stands beside the products, microseconds."""
    found: dict[str, float] = {}
    router = torch.randn(128, 5120, device="cuda").bfloat16()
    for tokens in (1, 8, 128, 2048):
        x = torch.randn(tokens, 5120, device="cuda").bfloat16()
        logits = torch.randn(tokens, 128, device="cuda")
        expert, _ = route_sigmoid(logits, 1)
        calls: dict[str, Callable[[], Any]] = {
            "router_logits": lambda x=x: router_logits(x, router),
            "F.linear of the router": lambda x=x: F.linear(x, router),
            "route_sigmoid": lambda logits=logits: route_sigmoid(logits, 1),
            "sort_rows": lambda expert=expert: sort_rows(expert, 128, 16),
            "quantize_rows": lambda x=x: quantize_rows(x),
        }
        for name, call in calls.items():
            try:
                found[f"{name}, {tokens}"] = graph_us(lambda _, call=call: call(), 20)
            except Exception as error:
                print(f"{name}, {tokens}: {error}"[:300], flush=True)
    return found


def report(rows: list[Row], copy_rate: float) -> None:
    failures = {f"{row.dtype} {row.form}: {row.failure}"[:160] for row in rows if row.failure}
    print("\n".join(["failed:", *sorted(failures)][:15]) if failures else "nothing failed")
    wrong = [f"{r.shape} {r.dtype} {r.tokens} {r.form}: {r.error:.3g}" for r in rows if not r.failure and not r.right]
    print("\n".join(["wrong:", *wrong][:15]) if wrong else "nothing wrong")
    print(f"copy {copy_rate:.0f} GB/s; us, share of copy, TFLOP/s of the fastest, then us of the next two")
    for key in dict.fromkeys((row.shape, row.dtype, row.tokens) for row in rows):
        mine = sorted(
            (row for row in rows if (row.shape, row.dtype, row.tokens) == key and row.right), key=lambda row: row.us
        )
        if mine:
            best = mine[0]
            others = "; ".join(f"{row.us:.1f} {row.form}" for row in mine[1:3])
            figures = f"{best.us:8.1f} {best.share_of_copy:4.0%} {best.tflop_per_s:5.0f}"
            print(f"{key[0][:12]:12} {key[1]:4} {key[2]:5} {figures} {best.form} | {others}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--budget-s", type=float, default=190.0)
    parser.add_argument("--shapes", nargs="*", default=[shape.name for shape in SHAPES])
    args = parser.parse_args()
    start = time.monotonic()
    torch.manual_seed(0)
    compile_all(FORMS)
    print(f"compiled in {time.monotonic() - start:.0f} s", flush=True)
    copy_rate = copy_gb_per_s()
    others = other_kernels()
    rows: list[Row] = []
    for shape in (shape for shape in SHAPES if shape.name in args.shapes):
        for dtype in ("fp8", "bf16"):
            rows += bench(shape, dtype, copy_rate, start + args.budget_s)
            torch.cuda.empty_cache()
            card = torch.cuda.get_device_name()
            result = {"card": card, "torch": torch.__version__, "copy_gb_per_s": copy_rate, "us": others}
            args.out.write_text(json.dumps(result | {"rows": [asdict(row) for row in rows]}, indent=1))
            print(f"{shape.name} {dtype} at {time.monotonic() - start:.0f} s", flush=True)
    print("; ".join(f"{name}: {us:.1f}" for name, us in others.items()))
    report(rows, copy_rate)


if __name__ == "__main__":
    main()
