"""Process start to first token over HTTP, with a cold and a warm cache of native kernels.

    python benchmarks/bench_startup.py MODEL [--layouts 1x1,2x2,8x2] [--reps 3] [--json FILE]

A layout is TP x PP. Cold: the cache directory is empty, so the kernels are compiled while the server starts (and
adopted when ready). The file cache of the checkpoint and of Python's own files is warm in both.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from processes import median, memory_mib
from servers import serving

BARS_S = {"1x1": 4.0, "2x2": 8.0, "8x2": 25.0}


def measure(model: str, layout: str, cold: bool) -> dict[str, float]:
    tp, pp = layout.split("x")
    command = [sys.executable, "-m", "remuda", "serve", model, "--host", "127.0.0.1", "--port", "{port}"]
    command += ["--tensor-parallel-size", tp, "--pipeline-parallel-size", pp, "--max-model-len", "1024"]
    command += ["--kv-cache-memory-bytes", "256M"]
    with tempfile.TemporaryDirectory() as cache, serving(command, {"XDG_CACHE_HOME": cache} if cold else {}) as server:
        return {"seconds": round(server.start_to_first_token_s, 2)} | memory_mib(server.pid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--layouts", default="1x1,2x2,8x2")
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    print(f"{'TP x PP':<9}{'cache':<7}{'s to first token':>18}{'bar s':>8}{'RSS MiB':>10}{'PSS MiB':>10}")
    for layout in args.layouts.split(","):
        for cold in (True, False):
            runs = [measure(args.model, layout, cold) for _ in range(args.reps)]
            row = {"layout": layout, "cache": "cold" if cold else "warm", "bar_s": BARS_S.get(layout)}
            row |= {key: median([run[key] for run in runs]) for key in runs[0]}
            row["all_s"] = [run["seconds"] for run in runs]
            rows.append(row)
            bar = "" if row["bar_s"] is None else f"{row['bar_s']:g}"
            print(
                f"{layout:<9}{row['cache']:<7}{row['seconds']:>18.2f}{bar:>8}{row['rss_mib']:>10.0f}{row['pss_mib']:>10.0f}",
                flush=True,
            )
    print("RESULT " + json.dumps({"peer": "remuda", "bench": "startup", "model": Path(args.model).name, "rows": rows}))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
