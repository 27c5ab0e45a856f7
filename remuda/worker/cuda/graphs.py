"""Decode steps as CUDA graphs: one for each number of rows that steps are rounded up to, or two: greedy tokens need no
logits.

A graph is captured when its bucket is used for the second time: the first answer waits for no capture, and the first
run has compiled every kernel. All TP ranks see the same plans, so all capture at the same step. B rows of a bucket.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

_BUCKETS = (1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256)
_BEYOND = 64  # larger buckets are multiples of it


def bucket_of(rows: int) -> int:
    """The smallest bucket that has room for `rows`."""
    if rows > _BUCKETS[-1]:
        return -(-rows // _BEYOND) * _BEYOND
    return _BUCKETS[bisect_left(_BUCKETS, rows)]


@dataclass(frozen=True)
class Outputs:
    """Tensors that a decode step leaves; those of a graph are written again by its next replay."""

    hidden_BH: torch.Tensor
    logits_BV: torch.Tensor | None = None  # on the last stage, where rows sample
    tokens_B: torch.Tensor | None = None  # on the last stage, where all rows are greedy; -1 where not finite


# (slots and positions [2, B], hidden [B, H] | None, whether all rows are greedy)
Body = Callable[[torch.Tensor, torch.Tensor | None, bool], Outputs]


class _Captured:
    def __init__(self, graph: Any, inputs_2B: torch.Tensor, hidden_BH: torch.Tensor | None, outputs: Outputs) -> None:
        self.graph = graph
        self.inputs_2B = inputs_2B
        self.hidden_BH = hidden_BH
        self.outputs = outputs


class DecodeGraphs:
    """Runs `body`, from a graph where there is one."""

    def __init__(self, body: Body, captures: bool, hidden_size: int, dtype: torch.dtype) -> None:
        self._body = body
        self._captures = captures
        self._hidden_size = hidden_size
        self._dtype = dtype
        self._captured: dict[tuple[int, bool], _Captured] = {}
        self._seen: set[tuple[int, bool]] = set()
        self._pool: Any = None  # memory that all graphs share: no two run at once

    def run(self, inputs_2B: torch.Tensor, receive: Callable[[torch.Tensor], None] | None, greedy: bool) -> Outputs:
        """`receive` fills the hidden states [B, H] that another stage sends; None on the first stage."""
        kind = inputs_2B.shape[1], greedy
        captured = self._captured.get(kind)
        if captured is None and self._captures and kind in self._seen:
            captured = self._captured[kind] = self._capture(inputs_2B, receive is not None, greedy)
        self._seen.add(kind)
        if captured is None:
            if receive is None:
                return self._body(inputs_2B, None, greedy)
            receive(hidden_BH := self._hidden_like(inputs_2B))
            return self._body(inputs_2B, hidden_BH, greedy)
        captured.inputs_2B.copy_(inputs_2B)
        if receive is not None:
            assert captured.hidden_BH is not None
            receive(captured.hidden_BH)
        captured.graph.replay()
        return captured.outputs

    def _hidden_like(self, inputs_2B: torch.Tensor) -> torch.Tensor:
        """Zeros, one row for each of the step's."""
        return torch.zeros(inputs_2B.shape[1], self._hidden_size, dtype=self._dtype, device=inputs_2B.device)

    def _capture(self, like_2B: torch.Tensor, receives: bool, greedy: bool) -> _Captured:
        inputs_2B = like_2B.clone()
        hidden_BH = self._hidden_like(inputs_2B) if receives else None
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Thread-local: NCCL's watchdog thread asks for the state of its events meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = self._body(inputs_2B, hidden_BH, greedy)
        self._pool = graph.pool()
        return _Captured(graph, inputs_2B, hidden_BH, outputs)
