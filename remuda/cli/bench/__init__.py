"""`remuda bench`: what a model does offline (throughput, latency) and what clients of a server see (serve)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from remuda.protocol.errors import ConfigError

KINDS = {
    "throughput": ("remuda.cli.bench.offline", "run_throughput", "tokens per second of many prompts together, offline"),
    "latency": ("remuda.cli.bench.offline", "run_latency", "seconds for one batch, offline"),
    "serve": ("remuda.cli.bench.online", "run", "load an OpenAI-compatible server"),
}


def run(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {name:<12} {about}" for name, (_, _, about) in KINDS.items()]
        print(
            "usage: remuda bench KIND [flags]\n\n" + "\n".join(lines) + "\n\nremuda bench KIND --help lists its flags."
        )
        return 0
    if argv[0] not in KINDS:
        raise ConfigError(f"unknown benchmark {argv[0]!r}: choose {', '.join(KINDS)}")
    module, function, _ = KINDS[argv[0]]
    status: int = getattr(import_module(module), function)(argv[1:])
    return status
