"""Times of GPU kernels: chains of calls in a CUDA graph, and the copy bandwidth that they are measured against."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

from remuda.cli.bench.bandwidth import measure_copy

Call = Callable[[], object]
_CALLS = 24  # of a graph, at least
_REPLAYS = 9


def graph_us(calls: Sequence[Call]) -> float:
    """Median microseconds of one call, the calls taken in turn: each on its own data, so that caches do not help."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
        stream.synchronize()
        rounds = -(-_CALLS // len(calls))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(rounds):
                for call in calls:
                    call()
        times = [_replay_ms(graph, stream) for _ in range(_REPLAYS)]
    torch.cuda.current_stream().wait_stream(stream)
    return statistics.median(times[2:]) * 1000 / (rounds * len(calls))


def _replay_ms(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(200_000)  # the host has launched the graph before the clock starts
    begin.record(stream)
    graph.replay()
    end.record(stream)
    end.synchronize()
    return begin.elapsed_time(end)


def copy_gb_s() -> float:
    """Bytes read plus bytes written of a large copy on the device."""
    return measure_copy() / 1e9


def matmul_tflops() -> float:
    """A bfloat16 product of 8192^3 by the library."""
    a, b = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
    return 2 * 8192**3 / graph_us([lambda: a @ b]) / 1e6
