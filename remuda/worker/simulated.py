"""A device whose compute is a wait of modelled length: everything around it (plans, transport, sampler) is real.

It computes beside its host, one launch after the other, as a GPU does, but its inputs and outputs are the host's. It
lets pipeline utilisation be measured on a machine with fewer cores than stages. T tokens, S sampled rows, H
hidden; of images, N tiles with S pixels a side.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from remuda.config.engine import EngineConfig, SimulationConfig
from remuda.layers.base import BuildContext
from remuda.layers.batch import ForwardBatch
from remuda.models.interfaces import Model, SupportsImages, SupportsPP
from remuda.parallel.groups import Groups
from remuda.parallel.p2p import Parcel
from remuda.parallel.topology import Topology
from remuda.protocol.step import StepPlan, StepResult
from remuda.weights.loader import LoadReport, Progress
from remuda.worker.cpu.runner import CpuRun, CpuRunner

_SPIN_S = 50e-6  # a sleeping process wakes about this late; the last stretch is spent awake
_LAST_LOOK_S = 300e-6  # before the device is done, its host stops looking for new plans
_QUIET_S = 2e-3  # at most so long after a launch its host leaves the cores to others


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
        self.busy_until_s = 0.0  # of the host's monotonic clock
        self._dtype = getattr(torch, context.dtype)
        self._zeros_TH = torch.zeros(1, context.config.hidden_size, dtype=self._dtype)
        vocab = context.config.vocab_size
        shard = -(-vocab // context.tp_size)
        self._shard = (context.tp_rank * shard, (context.tp_rank + 1) * shard)
        self._logits_SV = torch.zeros(1, shard)
        self._logits_SV[:, max(0, min(shard, vocab - self._shard[0])) :] = float("-inf")
        if self._shard[0] == 0:
            self._logits_SV[:, 1] = 1.0

    def load(self, progress: Progress | None = None, load_format: str = "auto") -> LoadReport:
        return LoadReport(0, 0)

    def embed(self, ids_T: torch.Tensor) -> torch.Tensor:
        self._zeros_TH = _at_least(self._zeros_TH, len(ids_T))
        return self._zeros_TH[: len(ids_T)]  # shared: nobody writes anything else into it

    def run_layers(self, hidden_TH: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        start_s = max(time.monotonic(), self.busy_until_s)
        prefill_tokens = len(hidden_TH) - batch.num_decodes
        simulation = self._simulation
        length_ms = (
            simulation.base_ms + simulation.row_ms * batch.num_decodes + simulation.prefill_token_ms * prefill_tokens
        )
        self.busy_until_s = start_s + length_ms * 1e-3
        if simulation.trace_dir:
            self._intervals.append(BusyInterval(start_s, self.busy_until_s, batch.num_decodes, prefill_tokens))
        return hidden_TH

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


@dataclass(frozen=True, slots=True)
class _Launched:
    """A step that the device is at: until when, on the host's monotonic clock, and what then goes to the next stage."""

    end_s: float
    outgoing: Parcel | None

    def remaining_s(self) -> float:
        return max(0.0, self.end_s - time.monotonic())

    def wait(self) -> None:
        if (nap_s := self.remaining_s() - _SPIN_S) > 0.0:
            time.sleep(nap_s)
        while self.remaining_s() > 0.0:
            pass


class SimulatedRunner(CpuRunner):
    """A CPU's, but hidden states leave, and tokens are chosen, when the device is done: in `finish`."""

    model: SimulatedModel

    def __init__(self, config: EngineConfig, topology: Topology, groups: Groups) -> None:
        super().__init__(config, topology, groups)
        # Finishing takes a while where tokens are chosen. TP ranks never launch ahead: they run their collectives in
        # one order, which timing must not decide.
        self.max_launched = 2 if topology.is_last_stage and topology.tp_size == 1 and groups.link is not None else 1
        self._launched: deque[_Launched] = deque()

    def _build(self) -> Model:
        assert self._config.simulation is not None
        context = BuildContext(self._config.model, self._topology, self._tp, "cpu")
        return SimulatedModel(self._config.simulation, context)

    def may_prepare(self, plan: StepPlan, launched: Sequence[CpuRun]) -> bool:
        """While the device computes, unless the plan gives away a slot whose last token has yet to be sampled."""
        reused = {sequence.slot for sequence in plan.new}
        computing = bool(self._launched) and self._launched[0].remaining_s() > 0.0
        return computing and all(reused.isdisjoint(run.plan.slots) for run in launched)

    def may_launch_ahead(self, launched: Sequence[CpuRun]) -> bool:
        """If the inputs have come: waiting for them must not keep the host from what it has to pass on."""
        if len(launched) >= self.max_launched or self.max_launched == 1:
            return False
        if self._launched:
            self._launched[0].wait()
        assert self._link is not None
        return self._link.has_arrived()

    def launch(self, run: CpuRun) -> None:
        self._compute(run)
        outgoing = None
        if run.foreseen is None:
            assert self._link is not None
            outgoing = self._link.wrap(run.hidden_TH)
        self._launched.append(_Launched(self.model.busy_until_s, outgoing))

    def rest(self, run: CpuRun) -> None:
        if (remaining_s := self._launched[0].remaining_s()) > 2 * _LAST_LOOK_S:
            time.sleep(min(_QUIET_S, remaining_s / 2))

    def patience_s(self, run: CpuRun) -> float:
        return max(0.0, self._launched[0].remaining_s() - _LAST_LOOK_S)

    def finish(self, run: CpuRun) -> StepResult | None:
        launched = self._launched.popleft()
        launched.wait()
        if launched.outgoing is not None:
            assert self._link is not None
            self._link.send_hidden(launched.outgoing, run.plan.step)
        return super().finish(run)

    def close(self) -> None:
        self.model.write_trace()
