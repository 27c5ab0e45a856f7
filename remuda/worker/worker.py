"""One rank: its shard of the model, its KV pages, and the resident batch that step plans change."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable

import torch

from remuda.config.engine import EngineConfig
from remuda.config.kv_groups import kv_groups
from remuda.kernels.native import runtime
from remuda.kernels.native.build import build
from remuda.models.interfaces import Model, SupportsImages
from remuda.parallel.groups import Groups
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
from remuda.worker.sampler import Sampled, Sampler
from remuda.worker.simulated import SimulatedModel
from remuda.worker.state import BatchState, Ints, Rows

_SELF_TEST_TOKENS = 3


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
        self._apply(plan)
        if not plan.slots:
            return StepResult(plan.step, []) if self.topology.is_driver else None
        rows = self.state.rows(plan)
        hidden_TH = self._forward(plan, rows)
        if self.sampler is None:
            assert self.groups.link is not None
            self.groups.link.send_hidden(hidden_TH, plan.step)
            positions = self.state.advance(rows)
            if self.feedback is not None:
                self.feedback.expect(plan.step, rows.sampling_slots, positions)
            return None
        sampled = self.sampler.run(hidden_TH, rows)
        self._distribute(plan.step, sampled, rows, self.state.advance(rows))
        if not self.topology.is_driver:
            return None
        return StepResult(plan.step, sampled.tokens_S.tolist(), sampled.logprobs, sampled.prompt_logprobs)

    def _apply(self, plan: StepPlan) -> None:
        self.state.apply(plan)
        if self.sampler is not None and plan.new:
            self.sampler.apply(plan)
        if self.images is not None and (plan.new or plan.released):
            self.images.apply(plan, self.state)

    def _forward(self, plan: StepPlan, rows: Rows) -> torch.Tensor:
        row_T, positions_T = token_rows(rows)
        batch = build_batch(self.state, rows, row_T, positions_T, self.pool, self.device)
        if not self.topology.is_first_stage:
            return self.model.run_layers(self._receive(plan), batch)
        if self.feedback is not None:
            self.feedback.settle_inputs(rows)
        hidden_TH = self.model.embed(token_ids(self.state, rows, row_T, positions_T, self.device))
        if self.images is not None:
            self.images.substitute_(hidden_TH, rows)
        return self.model.run_layers(hidden_TH, batch)

    def _receive(self, plan: StepPlan) -> torch.Tensor:
        assert self.groups.link is not None
        if not self._posted or self._posted[0] != plan.step:
            self.announce(plan)
        self._posted.popleft()
        return self.groups.link.receive_hidden(plan.step)

    def _distribute(self, step: int, sampled: Sampled, rows: Rows, positions: Ints) -> None:
        """Give the sampled tokens to those who will need them: this state, and the ranks of the first stage."""
        slots, tokens = rows.sampling_slots, sampled.tokens_S
        if not len(slots):
            return
        if self.topology.is_first_stage and not sampled.everywhere:
            shared = torch.from_numpy(tokens).to(self.device)
            tokens = self.groups.tp.broadcast_(shared).cpu().numpy()
        if self.topology.is_first_stage or self.topology.is_driver:
            self.state.settle(slots, positions, self.state.generation_N[slots], tokens)
        if self.topology.is_driver and self.groups.link is not None:
            self.groups.link.send_tokens(torch.from_numpy(tokens).to(self.device), step)

    # ------------------------------------------------------------------------------------------------ control

    def adopt_native(self) -> None:
        """Switch to what the native library has: kernels for bfloat16, collectives in shared memory. Every rank does so
        between the same two steps."""
        if self.device.type != "cpu":
            return
        computes = self.config.model.dtype == "bfloat16"
        threads = torch.get_num_threads()
        runtime.load(build(), threads if computes else 1)
        self.groups.share_memory(spin=self._ranks_here * threads <= len(os.sched_getaffinity(0)))
        if computes:
            torch.set_num_threads(1)  # what torch still does is small, and its idle threads would spin on our cores
            self.model.switch_to_native()

    def close(self) -> None:
        if isinstance(self.model, SimulatedModel):
            self.model.write_trace()
        self.groups.close()
