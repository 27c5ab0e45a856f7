"""The demo model's held-out problems in every layout that this machine has cards for: all must be answered right.

python -m tests.gpu.eval_layouts [TPxPP ...]        about half a minute each
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

import torch

LAYOUTS = ((1, 1), (2, 1), (1, 2), (4, 1), (2, 2), (1, 4))


def evaluate(tp: int, pp: int, dtype: str) -> tuple[int, int]:
    """(right, asked) of a server of its own."""
    command = [sys.executable, "-m", "remuda", "eval", "--json", "--concurrency", "32"]
    command += ["--device", "cuda", "--dtype", dtype, "-tp", str(tp), "-pp", str(pp), "--max-model-len", "2048"]
    command += ["--kv-cache-memory-bytes", "1G"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    skills = json.loads(done.stdout)["skills"].values()
    return sum(skill["right"] for skill in skills), sum(skill["asked"] for skill in skills)


def main(wanted: list[str]) -> int:
    failed = 0
    for tp, pp in LAYOUTS:
        if tp * pp > torch.cuda.device_count() or (wanted and f"{tp}x{pp}" not in wanted):
            continue
        start = time.monotonic()
        try:
            right, asked = evaluate(tp, pp, "bfloat16")
            print(f"TP{tp} PP{pp}: {right} of {asked}, {time.monotonic() - start:.1f} s", flush=True)
            failed += right < asked
        except subprocess.CalledProcessError as error:
            print(f"TP{tp} PP{pp}: ended with exit code {error.returncode}", flush=True)
            failed += 1
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
