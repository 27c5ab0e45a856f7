"""Where to cut the layers into pipeline stages: by the time and the bytes of each part, never by the layer count.

Time counts the parameters that a token passes through (the head's included, since in decoding every token samples);
bytes count what a rank must hold. The best cut has the smallest worst stage, both measured against the mean stage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from remuda.config.model import ModelConfig
from remuda.planner.share import Share
from remuda.protocol.errors import ConfigError

_Plan = tuple[float, float, tuple[int, ...]]  # (worst load, sum of squares, where each stage ends)


@dataclass(frozen=True)
class Cost:
    """Of a layer, or of what sits beside the layers at either end."""

    time: float  # in parameters: only proportions matter
    bytes: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.time + other.time, self.bytes + other.bytes)


def partition_layers(model: ModelConfig, tp_size: int, pp_size: int) -> tuple[int, ...]:
    """Layers per stage. Raises ConfigError if there are more stages than layers."""
    if not 1 <= pp_size <= model.num_layers:
        raise ConfigError(
            f"--pipeline-parallel-size must be 1 to {model.num_layers} (the model's layers), not {pp_size}"
        )
    return cut(Share(model, tp_size), pp_size)


def cut(share: Share, stages: int) -> tuple[int, ...]:
    """Layers per stage of a model of which a rank has `share`."""
    if stages == 1:
        return (len(share.layers),)
    first, last, *layers = (
        Cost(weights.active, weights.total_bytes) for weights in (share.first, share.last, *share.layers)
    )
    return balance(layers, first, last, stages)


def balance(layers: list[Cost], first: Cost, last: Cost, stages: int) -> tuple[int, ...]:
    """The contiguous cut with the least worst stage; among equals, the one with the least sum of squares."""
    count = len(layers)
    total = sum(layers, first + last)
    prefix = [Cost(0.0, 0.0)]
    for layer in layers:
        prefix.append(prefix[-1] + layer)

    def load(begin: int, end: int) -> float:
        """Of a stage with layers [begin, end), against the mean stage."""
        time, held = prefix[end].time - prefix[begin].time, prefix[end].bytes - prefix[begin].bytes
        if begin == 0:
            time, held = time + first.time, held + first.bytes
        if end == count:
            time, held = time + last.time, held + last.bytes
        return stages * max(time / total.time, held / total.bytes)

    best: dict[int, _Plan] = {0: (0.0, 0.0, ())}  # the cheapest way to put layers [0, end) on the stages so far
    for stage in range(1, stages + 1):
        ends = [count] if stage == stages else range(stage, count - (stages - stage) + 1)
        best = {end: _cheapest(best, end, load) for end in ends}
    cuts = (0, *best[count][2])
    return tuple(end - begin for begin, end in pairwise(cuts))


def _cheapest(best: dict[int, _Plan], end: int, load: Callable[[int, int], float]) -> _Plan:
    """Extend every shorter plan by one stage that stops at `end`; keep the best."""
    options = []
    for begin, (worst, squares, cuts) in best.items():
        if begin < end:
            cost = load(begin, end)
            options.append((max(worst, cost), squares + cost * cost, (*cuts, end)))
    return min(options)
