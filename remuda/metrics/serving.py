"""What the HTTP process measures of its requests. Times are seconds on the monotonic clock."""

from __future__ import annotations

import msgspec

from remuda.metrics.histogram import Histogram, one_two_five
from remuda.protocol.request import EngineRequest, EngineStats, FinishReason

_TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_ITL_S = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    80,
)
_E2E_S = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)


_ENGINE_COUNTERS = (
    "steps", "prompt_tokens", "generated_tokens", "preemptions", "prefix_queries_tokens", "prefix_hits_tokens",
)  # fmt: skip


class SequenceTimes:
    """When the tokens of one sequence came."""

    __slots__ = ("arrival_s", "first_s", "last_s", "tokens")

    def __init__(self, arrival_s: float) -> None:
        self.arrival_s = arrival_s
        self.first_s = self.last_s = 0.0
        self.tokens = 0


class ServingMetrics:
    """Latency and length distributions of all sequences since start, and the engine's latest statistics."""

    def __init__(self, max_model_len: int) -> None:
        lengths = one_two_five(max_model_len)
        self.time_to_first_token = Histogram(_TTFT_S)
        self.inter_token_latency = Histogram(_ITL_S)
        self.time_per_output_token = Histogram(_ITL_S)  # mean of one sequence, first token left out
        self.e2e_latency = Histogram(_E2E_S)
        self.prompt_tokens = Histogram(lengths)
        self.generation_tokens = Histogram(lengths)
        self.max_tokens = Histogram(lengths)
        self.finished: dict[FinishReason, int] = dict.fromkeys(FinishReason, 0)
        self.engine = EngineStats()
        self.recoveries: dict[str, int] = dict.fromkeys(("rank", "node", "engine", "start"), 0)  # by what failed
        self.recovery_seconds = 0.0
        self.requests_replayed = 0
        self._before = EngineStats()  # counters of the engines that are gone

    def engine_says(self, stats: EngineStats) -> None:
        """A snapshot of the engine that serves now. Its counters began anew; those here never fall."""
        sums = {name: getattr(self._before, name) + getattr(stats, name) for name in _ENGINE_COUNTERS}
        self.engine = msgspec.structs.replace(stats, **sums)

    def engine_gone(self, cause: str) -> None:
        """It died, or (`start`) another one did not start."""
        self.recoveries[cause] += 1
        self.engine = self._before = msgspec.structs.replace(
            self.engine, running=0, waiting=0, kv_pages_total=0, kv_pages_used=0
        )

    def recovered(self, lost_s: float) -> None:
        """Another engine serves, after `lost_s` without one."""
        self.recovery_seconds += lost_s

    def arrived(self, request: EngineRequest) -> SequenceTimes:
        self.prompt_tokens.observe(len(request.prompt_token_ids))
        self.max_tokens.observe(request.sampling.max_tokens or 0)
        return SequenceTimes(request.arrival_s)

    def produced(self, times: SequenceTimes, tokens: int, now_s: float) -> None:
        """`tokens` of a sequence arrived together."""
        if times.tokens:
            self.inter_token_latency.observe((now_s - times.last_s) / tokens, tokens)
        else:
            self.time_to_first_token.observe(now_s - times.arrival_s)
            times.first_s = now_s
        times.last_s = now_s
        times.tokens += tokens

    def ended(self, times: SequenceTimes, reason: FinishReason, now_s: float) -> None:
        self.finished[reason] += 1
        self.generation_tokens.observe(times.tokens)
        self.e2e_latency.observe(now_s - times.arrival_s)
        if times.tokens > 1:
            self.time_per_output_token.observe((times.last_s - times.first_s) / (times.tokens - 1))
