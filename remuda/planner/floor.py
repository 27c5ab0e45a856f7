"""The bandwidth floor of decode: the time to read what a step must read, at the speed at which the card copies.

A rank reads its weights once a step, of routed experts those that the step's tokens choose (evenly spread), and the
keys and values that its sequences see. Communication, activations and launches are free. With PP stages a batch is cut
into as many micro-batches, and a step of every sequence takes PP turns of the slowest stage; fewer sequences than
stages pass all stages in turn. No step can be faster, so `floor / measured` is how much of a card's memory is used.
"""

from __future__ import annotations

from collections import Counter
from itertools import accumulate, pairwise

from remuda.config.engine import ParallelConfig
from remuda.config.model import ModelConfig
from remuda.planner.share import Share

_NOT_READ = ("vision tower", "embedding")  # of an embedding a row per token


class DecodeFloor:
    """Of one model in one resolved layout."""

    def __init__(self, model: ModelConfig, parallel: ParallelConfig) -> None:
        self._model = model
        self._tp_size = parallel.tensor_parallel_size
        self._stages = list(pairwise(accumulate(parallel.layer_partition, initial=0)))
        share = Share(model, self._tp_size, parallel.enable_expert_parallel)
        self._weights = [share.stage(first, last).bytes for first, last in self._stages]

    def step_ms(self, batch: int, context: int, bytes_per_s: float) -> float:
        """A step of `batch` sequences, each with `context` tokens in the cache."""
        stages = len(self._stages)
        if batch < stages:
            return 1e3 * sum(self.stage_bytes(batch, context)) / bytes_per_s
        return 1e3 * stages * max(self.stage_bytes(batch / stages, context)) / bytes_per_s

    def stage_bytes(self, rows: float, context: int) -> list[float]:
        """What a rank of each stage reads for a step of `rows` sequences."""
        ends = len(self._stages) - 1
        return [
            self._weight_bytes(weights, rows, stage == ends) + rows * self._kv_bytes(range(*layers), context)
            for stage, (weights, layers) in enumerate(zip(self._weights, self._stages, strict=True))
        ]

    def _weight_bytes(self, weights: Counter[str], rows: float, ends: bool) -> float:
        read = float(sum(count for part, count in weights.items() if part not in _NOT_READ))
        if ends and "head" not in weights:  # tied: the embedding is the head
            read += weights["embedding"]
        moe = self._model.moe
        if moe is not None:
            untouched = (1 - moe.top_k / moe.num_experts) ** rows
            read -= untouched * weights["routed experts"]
        return read

    def _kv_bytes(self, layers: range, context: int) -> int:
        shape = self._model.kv_shape(self._tp_size)
        seen = (self._model.layers[index].attention for index in layers)
        return sum(spec.bytes_per_token(shape) * (context - spec.first_visible(context - 1)) for spec in seen)
