"""What was measured of each request, and the figures made of it: names as in vLLM's result files."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from remuda.protocol.errors import ConfigError

PERCENTILES = (50, 90, 99)
LATENCIES = {
    "ttft": "time to first token",
    "tpot": "time per output token after the first",
    "itl": "gap between two pieces of an answer",
    "e2el": "whole request",
}


def check_writable(path: str | None) -> None:
    """Before anything is measured: an hour of load must not end in "permission denied". An earlier result stays."""
    if path is None:
        return
    try:
        with open(path, "a"):
            pass
    except OSError as error:
        raise ConfigError(f"cannot write to {path}: {error.strerror}") from error


@dataclass
class RequestRecord:
    """Clock readings of one request, in seconds of one monotonic clock."""

    sent_s: float
    arrivals_s: list[float] = field(default_factory=list)  # of pieces of text
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None

    @property
    def ok(self) -> bool:
        return self.error is None and bool(self.arrivals_s)

    @property
    def ttft_ms(self) -> float:
        return 1e3 * (self.arrivals_s[0] - self.sent_s)

    @property
    def e2el_ms(self) -> float:
        return 1e3 * (self.arrivals_s[-1] - self.sent_s)

    @property
    def tpot_ms(self) -> float:
        return (self.e2el_ms - self.ttft_ms) / max(1, self.output_tokens - 1)

    @property
    def itl_ms(self) -> list[float]:
        return [1e3 * (b - a) for a, b in zip(self.arrivals_s, self.arrivals_s[1:], strict=False)]

    def meets(self, limits_ms: dict[str, float]) -> bool:
        return all(getattr(self, f"{name}_ms") <= limit for name, limit in limits_ms.items())


def parse_goodput(pairs: Sequence[str] | None) -> dict[str, float]:
    """['ttft:500', 'tpot:50'] -> limits in milliseconds."""
    limits: dict[str, float] = {}
    for pair in pairs or ():
        name, _, value = pair.partition(":")
        if name not in ("ttft", "tpot", "e2el") or not value.replace(".", "", 1).isdecimal():
            raise ConfigError(f"--goodput {pair}: write ttft:MS, tpot:MS or e2el:MS")
        limits[name] = float(value)
    return limits


def percentile(sorted_values: Sequence[float], percent: float) -> float:
    """Linear interpolation between closest ranks, as numpy's default."""
    position = (len(sorted_values) - 1) * percent / 100
    low = int(position)
    high = min(low + 1, len(sorted_values) - 1)
    return sorted_values[low] + (sorted_values[high] - sorted_values[low]) * (position - low)


def distribution(name: str, values_ms: list[float]) -> dict[str, float]:
    """mean, median, std and the percentiles of one latency."""
    if not values_ms:
        return {}
    ordered = sorted(values_ms)
    figures = {f"mean_{name}_ms": statistics.fmean(ordered), f"median_{name}_ms": percentile(ordered, 50)}
    figures[f"std_{name}_ms"] = statistics.pstdev(ordered)
    figures |= {f"p{p}_{name}_ms": percentile(ordered, p) for p in PERCENTILES}
    return {key: round(value, 3) for key, value in figures.items()}


def summarize(records: list[RequestRecord], duration_s: float, goodput_ms: dict[str, float]) -> dict[str, float]:
    """All figures of one run."""
    good = [record for record in records if record.ok]
    total_in, total_out = sum(r.prompt_tokens for r in good), sum(r.output_tokens for r in good)
    figures: dict[str, float] = {
        "duration": round(duration_s, 3), "completed": len(good), "failed": len(records) - len(good),
        "total_input_tokens": total_in, "total_output_tokens": total_out,
        "request_throughput": round(len(good) / duration_s, 3),
        "output_throughput": round(total_out / duration_s, 2),
        "total_token_throughput": round((total_in + total_out) / duration_s, 2),
    }  # fmt: skip
    if goodput_ms:
        figures["request_goodput"] = round(sum(r.meets(goodput_ms) for r in good) / duration_s, 3)
    figures |= distribution("ttft", [r.ttft_ms for r in good])
    figures |= distribution("tpot", [r.tpot_ms for r in good if r.output_tokens > 1])
    figures |= distribution("itl", [gap for r in good for gap in r.itl_ms])
    figures |= distribution("e2el", [r.e2el_ms for r in good])
    return figures


def table(figures: dict[str, float]) -> str:
    """The figures for people."""
    lines = [
        f"requests     {figures['completed']:,} done, {figures['failed']:,} failed in {figures['duration']:.2f} s",
        f"throughput   {figures['request_throughput']:,.2f} requests/s, {figures['output_throughput']:,.1f} output "
        f"tokens/s, {figures['total_token_throughput']:,.1f} tokens/s in all",
    ]
    if "request_goodput" in figures:
        lines.append(f"goodput      {figures['request_goodput']:,.2f} requests/s within the limits")
    lines.append(f"{'ms':<8}{'mean':>10}{'p50':>10}{'p90':>10}{'p99':>10}")
    for name, meaning in LATENCIES.items():
        if f"mean_{name}_ms" in figures:
            cells = [figures[f"{kind}_{name}_ms"] for kind in ("mean", "p50", "p90", "p99")]
            lines.append(f"{name.upper():<8}" + "".join(f"{cell:>10.2f}" for cell in cells) + f"   {meaning}")
    return "\n".join(lines)
