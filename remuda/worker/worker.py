"""One rank: its shard of the model, its KV pages, and the resident batch that step plans change."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from remuda.config.engine import EngineConfig
from remuda.config.kv_groups import kv_groups
from remuda.kernels.native import runtime
from remuda.kernels.native.build import build
from remuda.kernels.select import native_table
from remuda.layers.batch import ForwardBatch
from remuda.models.interfaces import Completion, Model, SupportsImages
from remuda.parallel.groups import Groups
from remuda.parallel.p2p import Parcel
from remuda.parallel.topology import Topology, node_of, node_ranks
from remuda.protocol.errors import RemudaError
from remuda.protocol.sampling import SamplingParams
from remuda.protocol.step import MemoryReport, NewSequence, PhaseProgress, StepPlan, StepResult
from remuda.worker.feedback import TokenFeedback
from remuda.worker.images import ImageRows
from remuda.worker.inputs import build_batch, token_ids, token_rows
from remuda.worker.kv_pool import KVPool, bytes_per_page
from remuda.worker.loading import load_model, whole_experts
from remuda.worker.memory import kv_bytes_available
from remuda.worker.sampler import Foreseen, Sampled, Sampler
from remuda.worker.simulated import SimulatedModel
from remuda.worker.state import BatchState, Ints, Rows

_SELF_TEST_TOKENS = 3


@dataclass(slots=True)
class Step:
    """A plan on its way through this rank. A plan that runs no rows (it only releases slots) has nothing but itself."""

    plan: StepPlan
    rows: Rows = field(init=False)
    slot_T: Ints = field(init=False)
    positions_T: Ints = field(init=False)
    batch: ForwardBatch = field(init=False)
    foreseen: Foreseen = field(init=False)  # on the last stage
    hidden_TH: torch.Tensor = field(init=False)  # once launched, as the next two
    outgoing: Parcel = field(init=False)  # the same, packed, where another stage follows
    completion: Completion = field(init=False)


class Worker:
    """Runs step plans on one rank. Life: `load`, `allocate`, `self_test`, then any number of `execute`, `close`."""

    def __init__(
        self,
        config: EngineConfig,
        topology: Topology,
        groups: Groups,
        progress: Callable[[PhaseProgress], None] = lambda _: None,
    ) -> None:
        self.config = config
        self.topology = topology
        self.groups = groups
        self.device = torch.device(config.device)
        self._progress = progress
        self.model: Model
        self._ranks_here = len(node_ranks(node_of(topology.rank, config.parallel), config.parallel))
        self._posted: deque[int] = deque()  # steps whose hidden states have a receive waiting for them

    # ------------------------------------------------------------------------------------------------ start-up

    def load(self) -> MemoryReport:
        """Build this rank's shard and fill it. Raises CheckpointError; reports progress in bytes."""
        rank = self.topology.rank

        def report(done: int, total: int) -> None:
            self._progress(PhaseProgress(rank, "weights", done, total))

        with torch.inference_mode():
            self.model, sizes = load_model(self.config, self.topology, self.groups.tp, self.device, report)
        self.groups.barrier("weights", self.config.startup_timeout_s)  # so that free memory is what is left to all
        return MemoryReport(
            rank=rank,
            weight_bytes=sizes.weight_bytes,
            checkpoint_bytes_read=sizes.checkpoint_bytes_read,
            kv_bytes_available=kv_bytes_available(self.config.cache, self._ranks_here, self.device),
            page_bytes=bytes_per_page(self.config.model, self.config.cache, self.topology),
            layers=list(self.topology.layers),
            experts=whole_experts(self.config, self.topology),
        )

    def allocate(self, pages: int) -> None:
        """Make the KV pages and the resident batch."""
        config, topology = self.config, self.topology
        self.pool = KVPool(config.model, config.cache, topology, pages, self.device)
        self.state = BatchState(
            slots=config.scheduler.max_num_seqs,
            max_tokens=config.scheduler.max_model_len,
            groups=len(kv_groups(config.model)),
            block_size=config.cache.block_size,
        )
        self.images = self._image_rows()
        self.sampler: Sampler | None = None
        if topology.is_last_stage:
            self.sampler = Sampler(self.model, self.groups.tp, self.state, config.model.vocab_size, self.device)
        self.feedback: TokenFeedback | None = None
        if topology.is_first_stage and self.groups.link is not None:
            in_flight = config.scheduler.steps_in_flight or topology.pp_size + 1
            self.feedback = TokenFeedback(self.groups.link, self.state, max_expected=2 * in_flight)

    def _image_rows(self) -> ImageRows | None:
        model = self.config.model
        if model.vision is None or model.image_tokens is None or not self.topology.is_first_stage:
            return None
        assert isinstance(self.model, SupportsImages)
        return ImageRows(self.model, model.image_tokens.patch, model.vision.image_size)

    def self_test(self) -> None:
        """Pass a prompt and a decode step through every stage. Raises RemudaError if the logits are not finite."""
        for plan in self._self_test_plans():
            result = self.execute(plan)
            if result is not None and -1 in result.tokens:
                raise RemudaError(
                    "the self-test forward gave logits that are not finite: the checkpoint is damaged, or the dtype "
                    "is too narrow for it (try --dtype float32)"
                )

    def _self_test_plans(self) -> list[StepPlan]:
        """The same on every rank; slot 0 and the first pages, which later sequences overwrite."""
        vocab = self.config.model.vocab_size
        blocks = -(-(_SELF_TEST_TOKENS + 1) // self.config.cache.block_size)
        groups = len(kv_groups(self.config.model))
        usable = self.pool.pages - 1  # a tiny cache shares them: this only tests that a forward goes through
        pages = [[1 + (g * blocks + b) % usable for b in range(blocks)] for g in range(groups)]
        sequence = NewSequence(
            slot=0,
            token_ids=[token % vocab for token in range(1, _SELF_TEST_TOKENS + 1)],
            prompt_len=_SELF_TEST_TOKENS,
            computed=0,
            pages=pages,
            sampling=SamplingParams(temperature=0.0, ignore_eos=True),
        )
        return [
            StepPlan(step=-2, slots=[0], counts=[_SELF_TEST_TOKENS], new=[sequence]),
            StepPlan(step=-1, slots=[0], counts=[1]),
        ]

    # ------------------------------------------------------------------------------------------------ steps

    def announce(self, plan: StepPlan) -> None:
        """Post this plan's receive early. Optional; plans are announced and executed in the same order."""
        if not self.topology.is_first_stage and plan.slots:
            assert self.groups.link is not None
            self.groups.link.post_hidden(sum(plan.counts), plan.step)
            self._posted.append(plan.step)

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult | None:
        """Run one plan. The driver answers; other ranks return None."""
        step = self.prepare(plan)
        self.launch(step)
        self.wait(step)
        return self.finish(step)

    def prepare(self, plan: StepPlan) -> Step:
        """All that needs neither the device nor another rank; counts the step as done in the resident batch.

        Steps are prepared, launched and finished in the order of their plans, all under inference_mode; see
        `may_overlap` for who may interleave.
        """
        self.state.apply(plan)
        if self.sampler is not None and plan.new:
            self.sampler.apply(plan)
        if self.images is not None and (plan.new or plan.released):
            self.images.apply(plan, self.state)
        step = Step(plan)
        if plan.slots:
            step.rows = rows = self.state.rows(plan)
            row_T, step.positions_T = token_rows(rows)
            step.slot_T = rows.slots_S if rows.max_count == 1 else rows.slots_S[row_T]
            step.batch = build_batch(self.state, rows, row_T, step.positions_T, self.pool, self.device)
            if self.sampler is not None:
                step.foreseen = self.sampler.foresee(rows)
            self.state.advance(rows, plan.step)
            if self.feedback is not None:
                self.feedback.expect(plan.step, rows)
        return step

    def may_overlap(self, step: Step, plan: StepPlan) -> bool:
        """Whether to prepare `plan` before `step` is finished: while a device computes that, and unless the plan gives
        away a slot whose last token the step has yet to sample."""
        reused = {sequence.slot for sequence in plan.new}
        return self.remaining_s(step) > 0.0 and bool(plan.slots) and reused.isdisjoint(step.plan.slots)

    def launches_first(self) -> bool:
        """Whether the device should get a prepared step before the host finishes the one before it.

        So it is on the last stage, where finishing takes a while, if the inputs have come.

        TP ranks never do so: they run their collectives in one order, which timing must not decide.
        """
        link = self.groups.link
        return self.sampler is not None and link is not None and self.groups.tp.size == 1 and link.has_arrived()

    def launch(self, step: Step) -> None:
        """Wait for the inputs and give the layers to the device. Where that is this CPU, they are computed now."""
        if step.plan.slots:
            step.hidden_TH = self.model.run_layers(self._inputs(step), step.batch)
            step.completion = self.model.completion()
            if self.sampler is None:
                assert self.groups.link is not None
                step.outgoing = self.groups.link.pack(step.hidden_TH)

    def remaining_s(self, step: Step) -> float:
        """How long the device will still compute a launched step."""
        return step.completion.remaining_s() if step.plan.slots else 0.0

    def wait(self, step: Step) -> None:
        """Until the device has computed a launched step."""
        if step.plan.slots:
            step.completion.wait()

    def finish(self, step: Step) -> StepResult | None:
        """Once the device is done, pass on: hidden states to the next stage, or tokens to those who need them."""
        plan = step.plan
        if not plan.slots:
            return StepResult(plan.step, []) if self.topology.is_driver else None
        if self.sampler is None:
            assert self.groups.link is not None
            self.groups.link.send_hidden(step.outgoing, plan.step)
            return None
        sampled = self.sampler.run(step.hidden_TH, step.foreseen)
        self._distribute(plan.step, sampled, step.rows)
        if not self.topology.is_driver:
            return None
        return StepResult(plan.step, sampled.tokens_S.tolist(), sampled.logprobs, sampled.prompt_logprobs)

    def _inputs(self, step: Step) -> torch.Tensor:
        rows = step.rows
        if not self.topology.is_first_stage:
            return self._receive(step.plan)
        if self.feedback is not None:
            self.feedback.settle_inputs(rows)
        hidden_TH = self.model.embed(token_ids(self.state, step.slot_T, step.positions_T, self.device))
        if self.images is not None:
            self.images.substitute_(hidden_TH, rows)
        return hidden_TH

    def _receive(self, plan: StepPlan) -> torch.Tensor:
        if not self._posted or self._posted[0] != plan.step:
            self.announce(plan)
        self._posted.popleft()
        assert self.groups.link is not None
        return self.groups.link.receive_hidden(plan.step)

    def _distribute(self, step: int, sampled: Sampled, rows: Rows) -> None:
        """Give the sampled tokens to those who will need them: this state, and the ranks of the first stage."""
        tokens = sampled.tokens_S
        if not len(tokens):
            return
        if self.topology.is_first_stage and not sampled.everywhere:
            shared = torch.from_numpy(tokens).to(self.device)
            tokens = self.groups.tp.broadcast_(shared).cpu().numpy()
        if self.topology.is_driver and self.groups.link is not None:
            self.groups.link.send_tokens(tokens, step)
        if self.topology.is_first_stage or self.topology.is_driver:
            self.state.settle(rows, tokens)

    # ------------------------------------------------------------------------------------------------ control

    def adopt_native(self) -> None:
        """Switch to what the native library has: kernels for bfloat16, collectives in shared memory. Every rank does so
        between the same two steps."""
        if self.device.type != "cpu":
            return
        computes = self.config.model.dtype == "bfloat16"
        threads = torch.get_num_threads()
        library = runtime.load(build(), threads if computes else 1)
        self.groups.share_memory(library, spin=self._ranks_here * threads <= len(os.sched_getaffinity(0)))
        if computes:
            torch.set_num_threads(1)  # what torch still does is small, and its idle threads would spin on our cores
            self.model.bind(native_table())

    def close(self) -> None:
        if isinstance(self.model, SimulatedModel):
            self.model.write_trace()
        self.groups.close()
