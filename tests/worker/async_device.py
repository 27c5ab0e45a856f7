"""A device that is asynchronous on purpose: it does nothing at all until somebody waits for it.

`Stream` has what a GPU's stream has: work is enqueued at once, done in order, and an event tells when so much is done.
Whoever reads what a device computes without having waited finds POISON, and whoever touches its memory from the host
is caught. N slots, L tokens of a sequence, T tokens of the step, C tokens that it chooses, H hidden size.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from remuda.config.engine import EngineConfig
from remuda.layers.base import BuildContext
from remuda.layers.batch import ForwardBatch
from remuda.parallel.groups import Groups
from remuda.parallel.topology import Topology
from remuda.protocol.step import StepPlan, StepResult
from remuda.weights.loader import LoadReport, Progress
from remuda.worker.cpu.memory import pages_on_host
from remuda.worker.cpu.sampler import Sampler
from remuda.worker.drafts import Drafts
from remuda.worker.feedback import TokenFeedback
from remuda.worker.inputs import build_batch, token_rows
from remuda.worker.kv_pool import KVPool
from remuda.worker.state import BatchState, Ints, Rows
from tests.worker.fakes import FakeModel

POISON = -7777


class Stream:
    """Work in order, put off until an event is waited for."""

    def __init__(self) -> None:
        self._work: deque[Callable[[], object]] = deque()
        self._enqueued = self._done = 0
        self.running = False

    def enqueue(self, work: Callable[[], object]) -> None:
        assert not self.running, "device work does not enqueue device work"
        self._work.append(work)
        self._enqueued += 1

    def event(self) -> int:
        return self._enqueued

    def is_done(self, event: int) -> bool:
        return self._done >= event

    def wait(self, event: int) -> None:
        self.running = True
        try:
            while self._done < event:
                self._work.popleft()()
                self._done += 1
        finally:
            self.running = False


class DeviceTokens:
    """The token buffer [N, L]: of the device, so only its own work may look at it."""

    def __init__(self, stream: Stream, slots: int, capacity: int) -> None:
        self._stream = stream
        self._memory_NL = np.full((slots, capacity), POISON, np.int32)

    @property
    def values_NL(self) -> np.ndarray:
        assert self._stream.running, "the host reads a token on the device"
        return self._memory_NL


class QueueDeviceLink:
    """A DeviceLink among threads. Its operations are enqueued on the stream of whoever calls."""

    def __init__(self, before: queue.Queue | None, after: queue.Queue | None, tokens: queue.Queue) -> None:
        self._before, self._after, self._tokens = before, after, tokens
        self.stream: Stream

    def receive_hidden_(self, x_TH: torch.Tensor, step: int) -> None:
        assert self._before is not None
        before = self._before
        self.stream.enqueue(lambda: x_TH.copy_(_taken(before, step)))

    def send_hidden(self, x_TH: torch.Tensor, step: int) -> None:
        assert self._after is not None
        after = self._after
        self.stream.enqueue(lambda: after.put((step, x_TH.clone())))

    def receive_tokens_(self, tokens_C: torch.Tensor, step: int) -> None:
        self.stream.enqueue(lambda: tokens_C.copy_(_taken(self._tokens, step)))

    def send_tokens(self, tokens_C: torch.Tensor, step: int) -> None:
        self.stream.enqueue(lambda: self._tokens.put((step, tokens_C.clone())))

    def close(self) -> None:
        return


def _taken(source: queue.Queue, step: int) -> torch.Tensor:
    sent_step, x = source.get(timeout=20)
    assert sent_step == step
    return x


@dataclass(slots=True)
class AsyncRun:
    plan: StepPlan
    rows: Rows
    slot_T: Ints
    positions_T: Ints
    batch: ForwardBatch
    hidden_TH: torch.Tensor
    tokens_C: torch.Tensor  # of the device
    pinned: StepResult  # what the host may read, once `event` is done
    event: int = field(init=False)


class AsyncRunner:
    """A runner as one for a GPU has to be: see `worker/runner.py`."""

    max_launched = 2

    def __init__(self, config: EngineConfig, topology: Topology, groups: Groups) -> None:
        self._config, self._topology, self._groups = config, topology, groups
        self.stream = Stream()
        self._link: Any = groups.link
        if self._link is not None:
            self._link.stream = self.stream

    def load(self, progress: Progress) -> LoadReport:
        context = BuildContext(self._config.model, self._topology, self._groups.tp, "cpu")
        self.model = FakeModel(context)
        return LoadReport(0, 0)

    def kv_bytes_available(self, ranks_on_node: int) -> int:
        return 1 << 30

    def allocate(self, pages: int, state: BatchState) -> None:
        config = self._config
        self._state = state
        self._pool = KVPool(config.model, config.cache, self._topology, pages, pages_on_host)
        self._tokens = DeviceTokens(self.stream, state.slots, state.capacity)
        self._sampler = Sampler(self.model, self._groups.tp, self._tokens._memory_NL, config.model.vocab_size)
        self._feedback = TokenFeedback(max_expected=6)

    def announce(self, plan: StepPlan) -> None:
        return

    def admit(self, plan: StepPlan) -> None:
        def copy_in() -> None:
            for sequence in plan.new:
                self._tokens.values_NL[sequence.slot, : len(sequence.token_ids)] = sequence.token_ids
            self._sampler.admit(plan)

        self.stream.enqueue(copy_in)

    def may_prepare(self, plan: StepPlan, launched: Sequence[AsyncRun]) -> bool:
        return True

    def prepare(self, plan: StepPlan, rows: Rows) -> AsyncRun:
        row_T, positions_T = token_rows(rows)
        batch = build_batch(self._state, rows, row_T, positions_T, self._pool)
        hidden_TH = torch.full((rows.total_tokens, self._config.model.hidden_size), float(POISON))
        tokens_C = torch.full((len(rows.chosen_slots_C),), POISON)
        return AsyncRun(
            plan, rows, rows.slots_S[row_T], positions_T, batch, hidden_TH, tokens_C, StepResult(plan.step, [POISON])
        )

    def may_launch_ahead(self, launched: Sequence[AsyncRun]) -> bool:
        return len(launched) < self.max_launched

    def launch(self, run: AsyncRun) -> None:
        topology, link, step = self._topology, self._link, run.plan.step
        if not topology.is_first_stage:
            link.receive_hidden_(run.hidden_TH, step)
        elif link is not None:
            self._take_tokens(run)
        if run.rows.drafts is not None:
            self.stream.enqueue(lambda drafts=run.rows.drafts: self._copy_in(drafts))
        self.stream.enqueue(lambda: self._compute(run))
        if not topology.is_last_stage:
            link.send_hidden(run.hidden_TH, step)
        else:
            self.stream.enqueue(lambda: self._sample(run))
            if link is not None and len(run.tokens_C):
                link.send_tokens(run.tokens_C, step)
        run.event = self.stream.event()

    def rest(self, run: AsyncRun) -> None:
        return

    def patience_s(self, run: AsyncRun) -> float:
        return 0.0 if self.stream.is_done(run.event) else 1e-3

    def finish(self, run: AsyncRun) -> StepResult | None:
        self.stream.wait(run.event)
        return run.pinned if self._topology.is_driver else None

    def adopt_native(self) -> None:
        return

    def close(self) -> None:
        return

    # ------------------------------------------------------------------------------------------------ of the host

    def _take_tokens(self, run: AsyncRun) -> None:
        """Enqueue the receives of all tokens that `run` reads, and expect those that it samples."""
        for step, rows in self._feedback.due(run.rows):
            tokens_C = torch.full((len(rows.chosen_slots_C),), POISON)
            self._link.receive_tokens_(tokens_C, step)
            theirs = self._state.still_theirs(rows)
            kept = np.arange(len(tokens_C)) if theirs is None else np.flatnonzero(theirs)
            self.stream.enqueue(lambda rows=rows, kept=kept, tokens_C=tokens_C: self._keep(rows, kept, tokens_C))
        self._feedback.expect(run.plan.step, run.rows)

    # ---------------------------------------------------------------------------------------------- of the device

    def _copy_in(self, drafts: Drafts) -> None:
        self._tokens.values_NL[drafts.slots_D, drafts.positions_D] = drafts.tokens_D

    def _compute(self, run: AsyncRun) -> None:
        hidden_TH = run.hidden_TH
        if self._topology.is_first_stage:
            ids_T = self._tokens.values_NL[run.slot_T, run.positions_T].astype(np.int64)
            assert (ids_T >= 0).all(), "a token is read before it is there"
            hidden_TH = self.model.embed(torch.from_numpy(ids_T))
        run.hidden_TH.copy_(self.model.run_layers(hidden_TH, run.batch))

    def _sample(self, run: AsyncRun) -> None:
        sampled = self._sampler.run(run.hidden_TH, self._sampler.foresee(run.rows))
        run.tokens_C.copy_(torch.from_numpy(sampled.tokens_S))
        self._keep(run.rows, np.arange(len(run.tokens_C)), run.tokens_C)
        run.pinned = sampled.as_result(run.plan.step, run.rows.drafts)

    def _keep(self, rows: Rows, kept: Ints, tokens_C: torch.Tensor) -> None:
        where = rows.chosen_slots_C[kept], rows.chosen_positions_C[kept]
        self._tokens.values_NL[where] = np.maximum(tokens_C.numpy()[kept], 0)
