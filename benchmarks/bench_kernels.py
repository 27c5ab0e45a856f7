"""Native kernels beside torch's on the same shapes: GB/s of what must be read, TFLOP/s, this machine's ceilings.

    python benchmarks/bench_kernels.py [--threads 2] [--only linear,experts,attention,elementwise] [--json FILE]

Each figure is the best of many calls. Weights rotate through copies that exceed the caches.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F

from remuda.kernels.native import build, runtime
from remuda.kernels.select import native_table, torch_table
from remuda.kernels.table import HeadLayout

TORCH, NATIVE = torch_table(), native_table()

_COLD_BYTES = 400 << 20  # of weight copies, so that none is found in a cache


@dataclass(frozen=True)
class Measurement:
    kernel: str
    shape: str
    native_us: float
    torch_us: float
    read_bytes: float
    flops: float

    def line(self) -> str:
        rate = self.read_bytes / self.native_us / 1e3
        return (
            f"{self.kernel:<12} {self.shape:<34} {self.native_us:>10.1f} {self.torch_us:>10.1f} "
            f"{self.torch_us / self.native_us:>6.2f}x {rate:>7.1f} {self.flops / self.native_us / 1e6:>7.2f}"
        )


def best_us(call: Callable[[], Any], seconds: float = 0.1, least: int = 5) -> float:
    """Shortest of the calls that fit `seconds`."""
    best, end, calls = float("inf"), time.perf_counter() + seconds, 0
    while calls < least or time.perf_counter() < end:
        started = time.perf_counter()
        call()
        best, calls = min(best, time.perf_counter() - started), calls + 1
    return best * 1e6


def _call_next(layers: Iterator[Callable[[torch.Tensor], torch.Tensor]], x: torch.Tensor) -> torch.Tensor:
    return next(layers)(x)


def _plain_linear(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, weight)


def bench_linear() -> Iterator[Measurement]:
    for n, k in [(384, 256), (2048, 256), (1280, 768), (4096, 768), (3072, 2048), (16384, 2048), (2048, 8192)]:
        copies = max(1, min(64, _COLD_BYTES // (2 * n * k)))
        weights = [torch.randn(n, k).bfloat16() for _ in range(copies)]
        linears = [NATIVE.make_linear(weight) for weight in weights]
        for rows in (1, 4, 16, 64, 512, 2048):
            x = torch.randn(rows, k).bfloat16()
            packed, plain = cycle(linears), cycle([partial(_plain_linear, weight) for weight in weights])
            yield Measurement(
                "linear", f"{rows} x {k} -> {n}", best_us(partial(_call_next, packed, x)),
                best_us(partial(_call_next, plain, x)), 2.0 * n * k, 2.0 * n * k * rows,
            )  # fmt: skip


def bench_experts() -> Iterator[Measurement]:
    experts = 16
    for hidden, intermediate in [(256, 512), (1024, 1024)]:
        gate_up = (torch.randn(experts, hidden, 2 * intermediate) * 0.03).bfloat16()
        down = (torch.randn(experts, intermediate, hidden) * 0.03).bfloat16()
        native, plain = NATIVE.make_experts(gate_up, down), TORCH.make_experts(gate_up, down)
        for tokens in (1, 16, 512, 4096):
            x, expert = torch.randn(tokens, hidden).bfloat16(), torch.randint(experts, (tokens, 1))
            weight, active = torch.rand(tokens, 1), len(expert.unique())
            values = 3.0 * hidden * intermediate
            yield Measurement(
                "experts", f"{tokens} x {hidden}, {active} x {intermediate}",
                best_us(partial(native, x, expert, weight)), best_us(partial(plain, x, expert, weight)),
                2 * values * active, 2 * values * tokens,
            )  # fmt: skip


@dataclass
class _Batch:
    query_start_S1: torch.Tensor
    context_S: torch.Tensor
    tables_GSB: torch.Tensor
    places_GT: torch.Tensor
    num_decodes: int
    block_size: int = 16
    plans: dict[Any, Any] = field(default_factory=dict)


def bench_attention() -> Iterator[Measurement]:
    for heads, kv_heads, width in [(8, 2, 32), (12, 4, 64), (40, 8, 128)]:
        for rows, query, context in [(1, 1, 256), (16, 1, 256), (1, 1, 8192), (8, 512, 512), (1, 512, 8192)]:
            blocks = -(-context // 16)
            tables = (torch.randperm(rows * blocks).int() + 1).view(1, rows, blocks)
            starts = (torch.arange(rows + 1) * query).int()
            places = torch.zeros(1, rows * query, dtype=torch.int64)
            batch = _Batch(starts, torch.full((rows,), context).int(), tables, places, rows if query == 1 else 0)
            k, v = (torch.randn(rows * blocks + 1, kv_heads, 16, width).bfloat16() for _ in range(2))
            q = torch.randn(rows * query, heads, width).bfloat16()
            call = (q, k, v, batch, 0, None, width**-0.5)
            layout = HeadLayout(heads, kv_heads, width, interleaved=False)
            seen = rows * query * (context - (query - 1) / 2)
            yield Measurement(
                "attention", f"{rows} x {query} of {context}, {heads}/{kv_heads} x {width}",
                best_us(partial(NATIVE.attention(layout).paged_attention, *call)),
                best_us(partial(TORCH.attention(layout).paged_attention, *call)),
                4.0 * rows * context * kv_heads * width, 4.0 * seen * heads * width,
            )  # fmt: skip


def bench_elementwise() -> Iterator[Measurement]:
    for rows, hidden in [(1, 256), (16, 1024), (2048, 768)]:
        x, residual, weight = (torch.randn(size).bfloat16() for size in ((rows, hidden), (rows, hidden), (hidden,)))
        yield Measurement(
            "add_rms_norm", f"{rows} x {hidden}", best_us(partial(NATIVE.add_rms_norm, x, residual, weight, 1e-5)),
            best_us(partial(TORCH.add_rms_norm, x, residual, weight, 1e-5)), 4.0 * rows * hidden, 0.0,
        )  # fmt: skip
        gate_up = torch.randn(rows, 2 * hidden).bfloat16()
        yield Measurement(
            "silu_mul", f"{rows} x {hidden}", best_us(partial(NATIVE.silu_mul, gate_up)),
            best_us(partial(TORCH.silu_mul, gate_up)), 4.0 * rows * hidden, 0.0,
        )  # fmt: skip


def bench_ceilings() -> None:
    big = torch.ones(_COLD_BYTES // 4)
    a = torch.randn(4096, 4096).bfloat16()
    print(f"read of memory by torch.sum: {4 * big.numel() / best_us(big.sum, 1.0) / 1e3:.1f} GB/s;", end=" ")
    print(f"4096^3 matmul by torch: {2 * 4096**3 / best_us(lambda: a @ a, 1.0) / 1e6:.2f} TFLOP/s")


BENCHES: dict[str, Callable[[], Iterator[Measurement]]] = {
    "linear": bench_linear,
    "experts": bench_experts,
    "attention": bench_attention,
    "elementwise": bench_elementwise,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default=",".join(BENCHES), help="comma-separated groups")
    parser.add_argument("--json", help="also write the measurements to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    runtime.load(build.build(), options.threads)
    bench_ceilings()
    print(f"{'kernel':<12} {'shape':<34} {'native us':>10} {'torch us':>10} {'':>7} {'GB/s':>7} {'TFLOP/s':>7}")
    measured = []
    for name in options.only.split(","):
        for measurement in BENCHES[name]():
            measured.append(measurement)
            print(measurement.line(), flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump([asdict(measurement) for measurement in measured], file, indent=1)


if __name__ == "__main__":
    main()
