"""Check and time every Triton kernel on one GPU, from the root of the repository:

    PYTHONPATH=. python3 benchmarks/gpu/bench_kernels.py out.json [--only decode,gemv] [--no-sweeps] [--budget 150]

Workers compile everything and run the checks side by side first; then one process times the cases by CUDA graphs. What
fails leaves one line and stops nothing else. Per row: microseconds, microseconds with early launch (PDL), GB/s and its
share of a copy measured in the same run, TFLOP/s for prefill, and torch's microseconds where torch has the operation.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import kernel_cases
from benchmarks.gpu.kernel_cases import Case, all_cases
from benchmarks.gpu.kernel_sweeps import sweeps
from benchmarks.gpu.timing import copy_gb_s, graph_us, matmul_tflops
from tests.kernels import triton_checks as checks
from tests.kernels.triton_checks import FP8, Rows

BF16 = torch.bfloat16
_MIXED = Rows((1, 8191, 8192, 0, 8193, 500, 0), ((0, 1000), (8000, 400), (16383, 3)))
_WORKERS = 14
_WORKERS_TIMEOUT_S = 100


def all_checks() -> Iterator[tuple[str, Callable[[], float]]]:
    for pdl in (False, True):
        for heads in ((10, 2, 128), (40, 8, 128), (32, 8, 64), (16, 4, 256)):
            for chunk in (None, 8192):
                run = partial(checks.check_attention, "cuda", BF16, heads, 16, _MIXED, chunk, pdl=pdl)
                yield f"attention {heads} chunk {chunk} pdl {pdl}", run
        for norm in ("none", "after", "before"):
            run = partial(checks.check_rope, "cuda", BF16, (10, 2, 128), 16, _MIXED, True, norm, pdl=pdl)
            yield f"rope interleaved norm {norm} pdl {pdl}", run
            run = partial(checks.check_rope, "cuda", BF16, (8, 2, 128), 16, Rows((5, 0)), False, norm, pdl=pdl)
            yield f"rope halves norm {norm} pdl {pdl}", run
        yield f"norm pdl {pdl}", partial(checks.check_norm, "cuda", BF16, 7, 5120, pdl)
        yield f"silu pdl {pdl}", partial(checks.check_silu, "cuda", BF16, 5, 16384, pdl)
        for fp8 in ("none", "weight", "both"):
            for gated in (False, True):
                run = partial(checks.check_gemv, "cuda", BF16, 3, 1792, 5120, gated, not gated, fp8, pdl)
                yield f"gemv fp8 {fp8} gated {gated} pdl {pdl}", run
        yield f"argmax pdl {pdl}", partial(checks.check_argmax, "cuda", torch.float32, 5, 50512, pdl)
        yield f"head pdl {pdl}", partial(checks.check_head, "cuda", BF16, 8, 50512, 5120, pdl)
        yield f"embedding pdl {pdl}", partial(checks.check_embedding, "cuda", BF16, 130, 5120, pdl)
        yield f"decode inputs pdl {pdl}", partial(checks.check_decode_inputs, "cuda", [3, 1, 0, 2], 5000, 16, pdl)
    yield "attention window", partial(checks.check_attention, "cuda", BF16, (10, 2, 128), 16, _MIXED, None, 1000)
    yield "attention fp8", partial(checks.check_attention, "cuda", BF16, (10, 2, 128), 16, _MIXED, 8192, None, FP8)
    yield "rope fp8", partial(checks.check_rope, "cuda", BF16, (4, 1, 128), 16, _MIXED, True, kv_dtype=FP8)
    yield "attention float32", partial(checks.check_attention, "cuda", torch.float32, (10, 2, 128), 16, _MIXED, 8192)
    yield "attention float16", partial(checks.check_attention, "cuda", torch.float16, (10, 2, 128), 16, _MIXED, 8192)
    yield "angles", partial(checks.check_angles, "cuda", [0, 1, 8190, 8191, 131071, 1048575], 64)


def selected(options: argparse.Namespace) -> tuple[list[Case], list[Case]]:
    wanted = options.only.split(",") if options.only else None
    keep = lambda case: wanted is None or case.kernel in wanted  # noqa: E731
    others = [] if options.no_sweeps else list(sweeps())
    return [case for case in all_cases() if keep(case)], [case for case in others if keep(case)]


def last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip() if lines else ''}"[:160]


def is_broken() -> bool:
    """Whether a kernel has left this process without a usable device: only a new process goes on."""
    try:
        torch.cuda.synchronize()
    except Exception:
        return True
    return False


def work(options: argparse.Namespace, number: int, path: Path) -> None:
    """A worker's share of the checks and of the compilations, results of the checks to a file."""
    results: dict[str, float | str] = json.loads(path.read_text()) if path.exists() else {}
    for name, check in list(all_checks())[number::_WORKERS]:
        if name in results:
            continue
        try:
            results[name] = check()
        except Exception as error:
            results[name] = last_line(error)
        path.write_text(json.dumps(results))
        if is_broken():
            os.execv(sys.executable, [sys.executable, *sys.argv])
        torch.cuda.empty_cache()
    kernel_cases._MOST_COPIES = 1
    base, others = selected(options)
    for case in [*base[number::_WORKERS], *others[number::_WORKERS]]:
        for pdl in (False, True) if case.pdl else (False,):
            try:
                case.calls(pdl)[0]()
                torch.cuda.synchronize()
            except Exception:  # the timing process meets it again and says so
                break
            torch.cuda.empty_cache()


def prepare(options: argparse.Namespace) -> dict[str, float | str]:
    """All workers, side by side: Triton's cache is full afterwards. The results of the checks."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.json" for number in range(_WORKERS)]
        command = [sys.executable, *sys.argv, "--worker"]
        workers = [subprocess.Popen([*command, f"{n}:{path}"]) for n, path in enumerate(paths)]
        deadline = time.monotonic() + _WORKERS_TIMEOUT_S
        for worker in workers:
            try:
                worker.wait(max(1.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        results: dict[str, float | str] = {}
        for path in paths:
            results |= json.loads(path.read_text()) if path.exists() else {}
    return {name: results.get(name, "never ran") for name, _ in all_checks()}


def measure(case: Case, copy: float) -> dict[str, Any]:
    row: dict[str, Any] = {"kernel": case.kernel, "shape": case.shape}
    try:
        row["us"] = graph_us(case.calls(False))
        row["gb_s"] = case.bytes / row["us"] / 1000
        row["share_of_copy"] = row["gb_s"] / copy
        row["tflops"] = case.flops / row["us"] / 1e6
        if case.pdl:
            row["us_pdl"] = graph_us(case.calls(True))
        if case.make_torch:
            row["us_torch"] = graph_us(case.torch_calls())
    except Exception as error:
        row["error"] = last_line(error)
    return row


def show(row: dict[str, Any]) -> str:
    head = f"{row['kernel']:13.13}{row['shape']:44.44}"
    if "us" not in row:
        return f"{head} {row['error']}"
    early = f"{row['us_pdl']:8.1f}" if "us_pdl" in row else f"{'':8}"
    flops = f"{row['tflops']:6.0f}" if row["kernel"] == "prefill" else f"{'':6}"
    torch_us = f"{row['us_torch']:8.1f}" if "us_torch" in row else ""
    numbers = f"{row['us']:8.1f}{early}{row['gb_s']:6.0f}{row['share_of_copy']:5.0%}{flops}{torch_us}"
    return f"{head}{numbers} {row.get('error', '')}".rstrip()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("json", type=Path)
    parser.add_argument("--only", help="kernels to time, by comma")
    parser.add_argument("--no-sweeps", action="store_true")
    parser.add_argument("--budget", type=float, default=150, help="seconds after which no more cases start")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        number, path = options.worker.split(":", 1)
        return work(options, int(number), Path(path))
    if not options.resume:
        began = time.time()
        report = {"began": began, "checks": prepare(options), "prepared_s": time.time() - began, "rows": []}
        report |= {"copy_gb_s": copy_gb_s(), "matmul_tflops": matmul_tflops()}
        options.json.write_text(json.dumps(report))
    run(options)


def run(options: argparse.Namespace) -> None:
    """Time what the report does not have yet; a process whose device is lost starts the next one."""
    report = json.loads(options.json.read_text())
    base, others = selected(options)
    for case in [*base, *others][len(report["rows"]) :]:
        if time.time() - report["began"] > options.budget - 5:
            report["rows"].append({"kernel": case.kernel, "shape": case.shape, "error": "no time left"})
        else:
            report["rows"].append(measure(case, report["copy_gb_s"]))
        options.json.write_text(json.dumps(report, indent=1))
        if is_broken():
            os.execv(sys.executable, [sys.executable, *sys.argv, "--resume"])
        torch.cuda.empty_cache()
    report["rows"] = report["rows"][len(base) :] + report["rows"][: len(base)]  # the end of long output is what is read
    show_report(report)


def show_report(report: dict[str, Any]) -> None:
    results = report["checks"]
    wrong = {name: result for name, result in results.items() if isinstance(result, str)}
    ceilings = f"copy {report['copy_gb_s']:.0f} GB/s, bf16 product {report['matmul_tflops']:.0f} TFLOP/s"
    print(f"{torch.cuda.get_device_name()}: {ceilings}")
    print(f"{'':57}      us     pdl  GB/s copy TFL/s   torch")
    print("\n".join(show(row) for row in report["rows"]))
    print(
        f"checks: {len(results) - len(wrong)} right, {len(wrong)} wrong; prepared in {report['prepared_s']:.0f} s,",
        end=" ",
    )
    print(f"{time.time() - report['began']:.0f} s in all")
    print("\n".join(f"WRONG {name}: {result}" for name, result in wrong.items()))


if __name__ == "__main__":
    main()
