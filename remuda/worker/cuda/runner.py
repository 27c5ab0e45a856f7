"""The runner of a GPU: a step is given to the device as a whole, and the host reads its tokens when it is finished.

Decode steps come from CUDA graphs (`graphs.py`); steps with prompts run kernel by kernel. What the host sends for a
step is which slots run, and where; tokens and page tables of resident sequences are on the device (`resident.py`).

B rows of a graph's bucket, S sampling rows, T tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch

from remuda.config.engine import EngineConfig
from remuda.kernels.select import kernel_table
from remuda.models.interfaces import Model, SupportsImages
from remuda.models.registry import build_model
from remuda.parallel.groups import Groups
from remuda.parallel.p2p import DeviceLink
from remuda.parallel.topology import Topology
from remuda.protocol.errors import PeerLost
from remuda.protocol.step import StepPlan, StepResult
from remuda.weights.loader import LoadReport, Progress
from remuda.worker.cuda.device import Device, Moment
from remuda.worker.cuda.graphs import DecodeGraphs, Outputs, bucket_of
from remuda.worker.cuda.memory import LargestStep, kv_bytes_of_gpu
from remuda.worker.cuda.resident import ResidentBatch
from remuda.worker.cuda.sampler import Answer, DeviceSampler, Wanted
from remuda.worker.cuda.timeline import timeline_of
from remuda.worker.drafts import Drafts
from remuda.worker.feedback import TokenFeedback
from remuda.worker.images import ImageRows
from remuda.worker.kv_pool import KVPool, compute_dtype
from remuda.worker.state import BatchState, Ints, Rows

_COMPILATION_S = 60.0  # that another rank may need for kernels which it runs for the first time
_LOOK_S = 50e-6  # how often the host looks whether a step is done while it waits for messages


@dataclass(slots=True)
class CudaRun:
    """One step on its way."""

    plan: StepPlan
    rows: Rows
    wanted: Wanted | None  # on the last stage
    due: list[tuple[int, Rows]]  # steps whose tokens the first stage takes in before
    answer: Answer | None = field(init=False, default=None)  # once launched, where rows sample
    gave_up: torch.Tensor | None = field(init=False, default=None)  # whether a kernel waited for a peer in vain
    done: Moment = field(init=False)


class CudaRunner:
    """See `worker/runner.py`."""

    def __init__(self, config: EngineConfig, topology: Topology, groups: Groups, device: Device) -> None:
        self._config = config
        self._topology = topology
        self._groups = groups
        self._tp = groups.tp
        self._link = cast("DeviceLink | None", groups.link)
        self._device = device
        self._timeline = timeline_of(config.trace_dir, device, topology)
        self._dtype = compute_dtype(config.model)
        self._kernels = kernel_table(str(device.torch_device), config.model.dtype)
        self.max_launched = 2 if topology.pp_size == 1 else topology.pp_size + 1
        self.model: Model

    # ------------------------------------------------------------------------------------------------ start-up

    def load(self, progress: Progress) -> LoadReport:
        self.model = build_model(self._config.model, self._topology, self._tp, str(self._device.torch_device))
        report = self.model.load(progress, self._config.load_format)
        self._device.trim()
        return report

    def kv_bytes_available(self, ranks_on_node: int) -> int:
        step = LargestStep(self.model, self._tp, self._config, self._topology, self._dtype, self._device)
        return kv_bytes_of_gpu(self._device, self._config, step.measure())

    def allocate(self, pages: int, state: BatchState) -> None:
        config, topology = self._config, self._topology
        self._state = state
        pool = KVPool(config.model, config.cache, topology, pages, self._pages)
        self._resident = ResidentBatch(self._device, state, pool, self._kernels)
        self._images = self._image_rows()
        self._sampler: DeviceSampler | None = None
        if topology.is_last_stage:
            self._sampler = DeviceSampler(
                self._device, self._kernels, self.model, self._tp, self._resident, state.slots, config.model.vocab_size
            )
        in_flight = config.scheduler.steps_in_flight or topology.pp_size + 1
        feeds = topology.is_first_stage and self._link is not None
        self._feedback = TokenFeedback(max_expected=2 * in_flight) if feeds else None
        captures = self._device.captures and not config.enforce_eager
        self._graphs = DecodeGraphs(self._decode, captures, config.model.hidden_size, self._dtype)

    def _pages(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=self._device.torch_device)

    def _image_rows(self) -> ImageRows | None:
        model = self._config.model
        if model.vision is None or model.image_tokens is None or not self._topology.is_first_stage:
            return None
        assert isinstance(self.model, SupportsImages)
        return ImageRows(self.model, model.image_tokens.patch, model.vision.image_size)

    # ------------------------------------------------------------------------------------------------ steps

    def announce(self, plan: StepPlan) -> None:
        """Receives take their place in the device's order when a step is launched."""

    def admit(self, plan: StepPlan) -> None:
        self._resident.admit(plan)
        if self._sampler is not None:
            self._sampler.admit(plan)
        if self._images is not None:
            self._images.apply(plan)

    def may_prepare(self, plan: StepPlan, launched: Sequence[CudaRun]) -> bool:
        return True

    def prepare(self, plan: StepPlan, rows: Rows) -> CudaRun:
        wanted = self._sampler.foresee(rows) if self._sampler is not None else None
        due: list[tuple[int, Rows]] = []
        if self._feedback is not None:
            due = self._feedback.due(rows)
            self._feedback.expect(plan.step, rows)
        return CudaRun(plan, rows, wanted, due)

    def may_launch_ahead(self, launched: Sequence[CudaRun]) -> bool:
        return len(launched) < self.max_launched

    def launch(self, run: CudaRun) -> None:
        self._resident.grant(run.plan)
        for step, rows in run.due:
            self._take_in(step, rows)
        self._timeline.begin()
        rows = run.rows
        if rows.drafts is not None:  # after what was chosen behind wrong ones, in the same places
            self._keep_drafts(rows.drafts)
        if rows.max_count == 1 and rows.drafts is None and rows.samples_S.all() and self._images_are_past(rows):
            self._launch_decode(run)
        else:
            self._launch_mixed(run)
        if self._groups.waits_gave_up is not None:
            run.gave_up = self._device.fetch(self._groups.waits_gave_up)
        self._timeline.end(run.plan.step, len(rows.slots_S), rows.total_tokens)
        run.done = self._device.moment()

    def _keep_drafts(self, drafts: Drafts) -> None:
        sent = self._device.send(np.stack([drafts.slots_D, drafts.positions_D, drafts.tokens_D]))
        self._resident.keep(sent[0], sent[1], sent[2])

    def _images_are_past(self, rows: Rows) -> bool:
        """Whether no row computes the place of an image: graphs embed token ids alone."""
        return self._images is None or not self._images.touches(rows)

    def rest(self, run: CudaRun) -> None:
        return

    def patience_s(self, run: CudaRun) -> float:
        return 0.0 if run.done.has_come() else _LOOK_S

    def finish(self, run: CudaRun) -> StepResult | None:
        if not run.done.wait(timeout_s := self._config.parallel.distributed_timeout_s + _COMPILATION_S):
            raise PeerLost(
                f"step {run.plan.step} is not done after {timeout_s:.0f} s: this GPU waits for another rank's"
            )
        self._timeline.settle()
        if run.gave_up is not None and run.gave_up.item():
            raise PeerLost("this GPU waited in vain for what another rank's GPU should have written into its memory")
        if not self._topology.is_driver:
            return None
        if run.answer is None:
            return StepResult(run.plan.step, [])
        return run.answer.as_result(run.plan.step, run.rows.drafts)

    # ------------------------------------------------------------------------------------------------ the two kinds

    def _launch_decode(self, run: CudaRun) -> None:
        """One token a row: rounded up to a bucket, by a graph if it has one."""
        rows = run.rows
        count = len(rows.slots_S)
        bucket = bucket_of(count)
        inputs_2B = np.zeros((2, bucket), np.int64)
        inputs_2B[0] = self._resident.padding_slot
        inputs_2B[0, :count], inputs_2B[1, :count] = rows.slots_S, rows.starts_S
        sent_2B = self._device.send(inputs_2B)
        greedy = run.wanted is None or run.wanted.all_plain
        outputs = self._graphs.run(sent_2B, self._receive(run, count), greedy)
        if run.wanted is None:
            self._send_hidden(run, outputs.hidden_BH[:count])
        elif outputs.tokens_B is not None:
            tokens_S = outputs.tokens_B[:count]
            run.answer = Answer(self._device.fetch(tokens_S))
            self._distribute(run, tokens_S)
        else:
            assert outputs.logits_BV is not None
            self._choose(run, outputs.logits_BV[:count])

    def _launch_mixed(self, run: CudaRun) -> None:
        """Rows of any length, kernel by kernel."""
        rows = run.rows
        batch, slot_T = self._resident.mixed_batch(rows)
        receive = self._receive(run, rows.total_tokens)
        if receive is None:
            hidden_TH = self.model.embed_of_buffer(self._resident.tokens_NL, slot_T, batch.positions_T)
            if self._images is not None:
                self._images.substitute_(hidden_TH, rows)
        else:
            shape = (rows.total_tokens, self._config.model.hidden_size)
            hidden_TH = torch.empty(shape, dtype=self._dtype, device=self._device.torch_device)
            receive(hidden_TH)
        hidden_TH = self.model.run_layers(hidden_TH, batch)
        if run.wanted is None:
            self._send_hidden(run, hidden_TH)
            return
        self._sample(run, rows.chosen_at_C(), hidden_TH)

    def _decode(self, inputs_2B: torch.Tensor, hidden_BH: torch.Tensor | None, greedy: bool) -> Outputs:
        """The device's whole part of a decode step; a graph can hold it."""
        slots_B, positions_B = inputs_2B[0], inputs_2B[1]
        batch = self._resident.decode_batch(slots_B, positions_B)
        if hidden_BH is None:
            hidden_BH = self.model.embed_of_buffer(self._resident.tokens_NL, slots_B, positions_B)
        hidden_BH = self.model.run_layers(hidden_BH, batch)
        if self._sampler is None:
            return Outputs(hidden_BH)
        if greedy:
            return Outputs(hidden_BH, tokens_B=self._sampler.greedy(hidden_BH, slots_B, positions_B))
        return Outputs(hidden_BH, self.model.logits(hidden_BH))

    def _sample(self, run: CudaRun, chosen_at_C: Ints, hidden_TH: torch.Tensor) -> None:
        """The tokens that a step of any rows chooses, and log-probabilities of its prompts."""
        sampler, wanted = self._sampler, run.wanted
        assert sampler is not None and wanted is not None
        if len(chosen_at_C):
            hidden_SH = hidden_TH[self._device.send(chosen_at_C)]
            if wanted.all_plain:
                behind = self._device.send(np.stack([wanted.slots_S, wanted.positions_S - 1]))
                tokens_S = sampler.greedy(hidden_SH, behind[0], behind[1])
                run.answer = Answer(self._device.fetch(tokens_S))
                self._distribute(run, tokens_S)
            else:
                self._choose(run, self.model.logits(hidden_SH))
        if wanted.prompts:
            run.answer = run.answer or Answer(torch.empty(0))
            run.answer.prompts = sampler.prompt_logprobs(hidden_TH, wanted)

    def _choose(self, run: CudaRun, logits_SV: torch.Tensor) -> None:
        """Tokens of rows that are not all plainly greedy."""
        sampler, wanted = self._sampler, run.wanted
        assert sampler is not None and wanted is not None
        tokens_S, run.answer = sampler.choose(logits_SV, wanted)
        where = self._device.send(np.stack([wanted.slots_S, wanted.positions_S]))
        self._resident.keep(where[0], where[1], tokens_S)
        self._distribute(run, tokens_S)

    # ------------------------------------------------------------------------------------------------ between stages

    def _receive(self, run: CudaRun, count: int) -> Callable[[torch.Tensor], None] | None:
        """What fills the first `count` rows of a buffer with the previous stage's; None on the first stage."""
        if self._topology.is_first_stage:
            return None
        link = self._link
        assert link is not None

        def receive(hidden_BH: torch.Tensor) -> None:
            link.receive_hidden_(hidden_BH[:count], run.plan.step)
            self._timeline.begin()

        return receive

    def _send_hidden(self, run: CudaRun, hidden_TH: torch.Tensor) -> None:
        assert self._link is not None
        self._link.send_hidden(hidden_TH.contiguous(), run.plan.step)

    def _distribute(self, run: CudaRun, tokens_S: torch.Tensor) -> None:
        if self._topology.is_driver and self._link is not None:
            self._link.send_tokens(tokens_S.contiguous(), run.plan.step)

    def _take_in(self, step: int, rows: Rows) -> None:
        """Tokens of an earlier step into the first stage's buffer, but for slots that have been reused since."""
        assert self._link is not None
        tokens_S = torch.empty(len(rows.chosen_slots_C), dtype=torch.int64, device=self._device.torch_device)
        self._link.receive_tokens_(tokens_S, step)
        where = np.stack([rows.chosen_slots_C, rows.chosen_positions_C])
        theirs = self._state.still_theirs(rows)
        if theirs is not None:
            kept = np.flatnonzero(theirs)
            where, tokens_S = where[:, kept], tokens_S[self._device.send(kept)]
        if where.shape[1]:
            sent = self._device.send(np.ascontiguousarray(where))
            self._resident.keep(sent[0], sent[1], tokens_S)

    # ------------------------------------------------------------------------------------------------ control

    def adopt_native(self) -> None:
        """The native library is the processor's."""

    def close(self) -> None:
        self._timeline.write()
