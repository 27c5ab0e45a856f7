"""The runner of a rank that computes on the processor: a step is computed when it is launched, its tokens are chosen
when it is finished.

N slots, L tokens of a sequence, T tokens of the step, S rows, C tokens that it chooses, H hidden size.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch

from remuda.config.engine import EngineConfig
from remuda.kernels.native import runtime
from remuda.kernels.native.build import build
from remuda.kernels.select import native_table
from remuda.layers.batch import ForwardBatch
from remuda.models.interfaces import Model, SupportsImages
from remuda.models.registry import build_model
from remuda.parallel.groups import Groups
from remuda.parallel.p2p import HostLink
from remuda.parallel.topology import Topology, node_of, node_ranks
from remuda.protocol.step import StepPlan, StepResult
from remuda.weights.loader import LoadReport, Progress
from remuda.worker.cpu.memory import kv_bytes_of_host, pages_on_host
from remuda.worker.cpu.sampler import Foreseen, Sampled, Sampler
from remuda.worker.feedback import TokenFeedback
from remuda.worker.images import ImageRows
from remuda.worker.inputs import build_batch, token_rows
from remuda.worker.kv_pool import KVPool
from remuda.worker.state import BatchState, Ints, Rows


@dataclass(slots=True)
class CpuRun:
    """One step on its way."""

    plan: StepPlan
    rows: Rows
    slot_T: Ints
    positions_T: Ints
    batch: ForwardBatch
    foreseen: Foreseen | None  # on the last stage
    hidden_TH: torch.Tensor = field(init=False)  # once computed


class CpuRunner:
    """See `worker/runner.py`."""

    max_launched = 1

    def __init__(self, config: EngineConfig, topology: Topology, groups: Groups) -> None:
        self._config = config
        self._topology = topology
        self._tp = groups.tp
        self._groups = groups
        self._link = cast("HostLink | None", groups.link)
        self._posted: deque[int] = deque()  # steps whose hidden states have a receive waiting for them
        self.model: Model

    # ------------------------------------------------------------------------------------------------ start-up

    def load(self, progress: Progress) -> LoadReport:
        self.model = self._build()
        return self.model.load(progress, self._config.load_format)

    def _build(self) -> Model:
        return build_model(self._config.model, self._topology, self._tp)

    def kv_bytes_available(self, ranks_on_node: int) -> int:
        return kv_bytes_of_host(self._config.cache.memory_utilization, ranks_on_node)

    def allocate(self, pages: int, state: BatchState) -> None:
        config, topology = self._config, self._topology
        self._state = state
        self._pool = KVPool(config.model, config.cache, topology, pages, pages_on_host)
        # Every known token of resident sequences; zeros, because memory that nobody touches costs nothing.
        self._tokens_NL = np.zeros((state.slots, state.capacity), np.int32)
        self._images = self._image_rows()
        self._sampler: Sampler | None = None
        if topology.is_last_stage:
            self._sampler = Sampler(self.model, self._tp, self._tokens_NL, config.model.vocab_size)
        self._feedback: TokenFeedback | None = None
        if topology.is_first_stage and self._link is not None:
            in_flight = config.scheduler.steps_in_flight or topology.pp_size + 1
            self._feedback = TokenFeedback(max_expected=2 * in_flight)

    def _image_rows(self) -> ImageRows | None:
        model = self._config.model
        if model.vision is None or model.image_tokens is None or not self._topology.is_first_stage:
            return None
        assert isinstance(self.model, SupportsImages)
        return ImageRows(self.model, model.image_tokens.patch, model.vision.image_size)

    # ------------------------------------------------------------------------------------------------ steps

    def announce(self, plan: StepPlan) -> None:
        if not self._topology.is_first_stage and plan.slots:
            assert self._link is not None
            self._link.post_hidden(sum(plan.counts), plan.step)
            self._posted.append(plan.step)

    def admit(self, plan: StepPlan) -> None:
        for sequence in plan.new:
            self._tokens_NL[sequence.slot, : len(sequence.token_ids)] = sequence.token_ids
        if self._sampler is not None:
            self._sampler.admit(plan)
        if self._images is not None:
            self._images.apply(plan)

    def may_prepare(self, plan: StepPlan, launched: Sequence[CpuRun]) -> bool:
        """Not before its tokens: nothing is gained while this very processor has something to pass on."""
        return False

    def prepare(self, plan: StepPlan, rows: Rows) -> CpuRun:
        row_T, positions_T = token_rows(rows)
        slot_T = rows.slots_S if rows.max_count == 1 else rows.slots_S[row_T]
        batch = build_batch(self._state, rows, row_T, positions_T, self._pool)
        foreseen = self._sampler.foresee(rows) if self._sampler is not None else None
        if self._feedback is not None and self._feedback.expect(plan.step, rows):
            assert self._link is not None
            self._link.post_tokens(len(rows.chosen_slots_C), plan.step)
        return CpuRun(plan, rows, slot_T, positions_T, batch, foreseen)

    def may_launch_ahead(self, launched: Sequence[CpuRun]) -> bool:
        return False

    def launch(self, run: CpuRun) -> None:
        self._compute(run)
        if run.foreseen is None:
            assert self._link is not None
            self._link.send_hidden(self._link.wrap(run.hidden_TH), run.plan.step)

    def rest(self, run: CpuRun) -> None:
        return

    def patience_s(self, run: CpuRun) -> float:
        return 0.0

    def finish(self, run: CpuRun) -> StepResult | None:
        if run.foreseen is None:
            return None
        assert self._sampler is not None
        sampled = self._sampler.run(run.hidden_TH, run.foreseen)
        self._distribute(run, sampled)
        if not self._topology.is_driver:
            return None
        return sampled.as_result(run.plan.step, run.rows.drafts)

    def _compute(self, run: CpuRun) -> None:
        """Wait for the inputs, then compute this stage's layers."""
        if self._feedback is not None:
            assert self._link is not None
            for step, rows in self._feedback.due(run.rows):
                self._keep(rows, self._link.receive_tokens(step))
        if (drafts := run.rows.drafts) is not None:  # after what was chosen behind wrong ones, in the same places
            self._tokens_NL[drafts.slots_D, drafts.positions_D] = drafts.tokens_D
        run.hidden_TH = self.model.run_layers(self._inputs(run), run.batch)

    def _inputs(self, run: CpuRun) -> torch.Tensor:
        if not self._topology.is_first_stage:
            return self._receive(run.plan)
        ids_T = self._tokens_NL[run.slot_T, run.positions_T].astype(np.int64)
        hidden_TH = self.model.embed(torch.from_numpy(ids_T))
        if self._images is not None:
            self._images.substitute_(hidden_TH, run.rows)
        return hidden_TH

    def _receive(self, plan: StepPlan) -> torch.Tensor:
        if not self._posted or self._posted[0] != plan.step:
            self.announce(plan)
        self._posted.popleft()
        assert self._link is not None
        return self._link.receive_hidden(plan.step)

    def _distribute(self, run: CpuRun, sampled: Sampled) -> None:
        """Give the sampled tokens to those who will need them: this rank's buffer, and the ranks of the first stage."""
        tokens_C, topology = sampled.tokens_S, self._topology
        if not len(tokens_C):
            return
        if topology.is_first_stage and not sampled.everywhere:
            tokens_C = self._tp.broadcast_(torch.from_numpy(tokens_C)).numpy()
        if topology.is_driver and self._link is not None:
            self._link.send_tokens(tokens_C, run.plan.step)
        if topology.is_first_stage or topology.is_driver:
            self._keep(run.rows, tokens_C)

    def _keep(self, rows: Rows, tokens_C: Ints) -> None:
        """Write chosen tokens where they belong, also those behind wrong drafts: nobody reads them before others take
        their place. Slots reused since are left alone."""
        slots, positions = rows.chosen_slots_C, rows.chosen_positions_C
        theirs = self._state.still_theirs(rows)
        if theirs is not None:
            slots, positions, tokens_C = slots[theirs], positions[theirs], tokens_C[theirs]
        self._tokens_NL[slots, positions] = np.maximum(tokens_C, 0)  # -1 (no finite logits): any; the engine ends it

    # ------------------------------------------------------------------------------------------------ control

    def adopt_native(self) -> None:
        """Kernels for bfloat16, collectives in shared memory."""
        computes = self._config.model.dtype == "bfloat16"
        threads = torch.get_num_threads()
        parallel = self._config.parallel
        ranks_here = len(node_ranks(node_of(self._topology.rank, parallel), parallel))
        library = runtime.load(build(), threads if computes else 1)
        self._groups.share_memory(library, spin=ranks_here * threads <= len(os.sched_getaffinity(0)))
        if computes:
            torch.set_num_threads(1)  # what torch still does is small, and its idle threads would spin on our cores
            self.model.bind(native_table())

    def close(self) -> None:
        return
