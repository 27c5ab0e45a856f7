"""A model whose compute is a wait of modelled length: everything around it (plans, transport, sampler) is real.

The wait is that of a device which computes beside its host, one launch after the other, as a GPU does. It lets
pipeline utilisation be measured on a machine with fewer cores than stages. T tokens, S sampled rows, H hidden.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from remuda.config.engine import SimulationConfig
from remuda.layers.base import BuildContext
from remuda.layers.batch import ForwardBatch
from remuda.models.interfaces import Completion, Model, SupportsImages, SupportsPP
from remuda.weights.loader import LoadReport, Progress

_SPIN_S = 50e-6  # a sleeping process wakes about this late; the last stretch is spent awake


class _At(Completion):
    """Done at a time of the host's monotonic clock."""

    def __init__(self, end_s: float) -> None:
        self._end_s = end_s

    def remaining_s(self) -> float:
        return max(0.0, self._end_s - time.monotonic())

    def wait(self) -> None:
        if (nap_s := self.remaining_s() - _SPIN_S) > 0.0:
            time.sleep(nap_s)
        while self.remaining_s() > 0.0:
            pass


@dataclass(slots=True)
class BusyInterval:
    """One micro-batch in one stage; times are of the host's monotonic clock."""

    start_s: float
    end_s: float
    decode_rows: int
    prefill_tokens: int


class SimulatedModel(Model, SupportsPP, SupportsImages):
    """Zeros go in and out; token 1 is always the likeliest. With `trace_dir`, TP rank 0 writes its intervals there."""

    def __init__(self, simulation: SimulationConfig, context: BuildContext) -> None:
        super().__init__(context)
        self._simulation = simulation
        self._intervals: list[BusyInterval] = []
        self._idle_from_s = 0.0
        self._dtype = getattr(torch, context.dtype)
        self._zeros_TH = torch.zeros(1, context.config.hidden_size, dtype=self._dtype)
        vocab = context.config.vocab_size
        shard = -(-vocab // context.tp_size)
        self._shard = (context.tp_rank * shard, (context.tp_rank + 1) * shard)
        self._logits_SV = torch.zeros(1, shard)
        self._logits_SV[:, max(0, min(shard, vocab - self._shard[0])) :] = float("-inf")
        if self._shard[0] == 0:
            self._logits_SV[:, 1] = 1.0

    def load(self, progress: Progress | None = None) -> LoadReport:
        return LoadReport(0, 0)

    def embed(self, ids_T: torch.Tensor) -> torch.Tensor:
        self._zeros_TH = _at_least(self._zeros_TH, len(ids_T))
        return self._zeros_TH[: len(ids_T)]  # shared: nobody writes anything else into it

    def run_layers(self, hidden_TH: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        start_s = max(time.monotonic(), self._idle_from_s)
        prefill_tokens = len(hidden_TH) - batch.num_decodes
        simulation = self._simulation
        length_ms = (
            simulation.base_ms + simulation.row_ms * batch.num_decodes + simulation.prefill_token_ms * prefill_tokens
        )
        self._idle_from_s = start_s + length_ms * 1e-3
        if simulation.trace_dir:
            self._intervals.append(BusyInterval(start_s, self._idle_from_s, batch.num_decodes, prefill_tokens))
        return hidden_TH

    def completion(self) -> Completion:
        return _At(self._idle_from_s)

    def logits(self, hidden_SH: torch.Tensor) -> torch.Tensor:
        self._logits_SV = _at_least(self._logits_SV, len(hidden_SH))
        return self._logits_SV[: len(hidden_SH)]

    @property
    def vocab_shard(self) -> tuple[int, int]:
        return self._shard

    def encode_images(self, tiles_N3SS: torch.Tensor) -> torch.Tensor:
        vision = self.context.config.vision
        assert vision is not None
        rows = len(tiles_N3SS) * vision.tokens_per_tile
        return torch.zeros(rows, self.context.config.hidden_size, dtype=self._dtype)

    def write_trace(self) -> None:
        """Write `stage-<n>.json`: the busy intervals in step order, without those of the self-test."""
        topology = self.context.topology
        if self._simulation.trace_dir and topology.tp_rank == 0:
            path = Path(self._simulation.trace_dir) / f"stage-{topology.stage}.json"
            path.write_text(json.dumps([asdict(interval) for interval in self._intervals]))


def _at_least(rows: torch.Tensor, count: int) -> torch.Tensor:
    """`rows`, all alike, or more of them."""
    return rows if len(rows) >= count else rows[:1].repeat(count, 1)
