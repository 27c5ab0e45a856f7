"""One rank: what plans mean for it. Its runner (`worker/runner.py`) has the device that computes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from remuda.config.engine import EngineConfig
from remuda.parallel.groups import Groups
from remuda.parallel.topology import Topology, expert_range, node_of, node_ranks
from remuda.protocol.errors import RemudaError
from remuda.protocol.progress import PhaseProgress
from remuda.protocol.sampling import SamplingParams
from remuda.protocol.step import MemoryReport, NewSequence, StepPlan, StepResult
from remuda.worker.devices import make_runner
from remuda.worker.kv_pool import page_of
from remuda.worker.runner import AnyRunner
from remuda.worker.state import BatchState

_SELF_TEST_TOKENS = 3


@dataclass(frozen=True, slots=True)
class Step:
    """A plan that is prepared, and its run on the device; None where no row runs (it only releases slots)."""

    plan: StepPlan
    run: Any


class Worker:
    """Runs step plans on one rank. Life: `load`, `allocate`, `self_test`, then any number of steps, `close`."""

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
        self.runner: AnyRunner = make_runner(config, topology, groups)
        self.launched: deque[Step] = deque()  # and not finished, oldest first
        self._progress = progress

    # ------------------------------------------------------------------------------------------------ start-up

    def load(self) -> MemoryReport:
        """Build this rank's shard and fill it. Raises CheckpointError; reports progress in bytes."""
        config, rank = self.config, self.topology.rank

        def report(done: int, total: int) -> None:
            self._progress(PhaseProgress(rank, "weights", done, total))

        with torch.inference_mode():
            sizes = self.runner.load(report)
            self.groups.barrier("weights", config.startup_timeout_s)  # so that free memory is what is left to all
            ranks_here = len(node_ranks(node_of(rank, config.parallel), config.parallel))
            available = config.cache.kv_cache_memory_bytes
            if available is None:
                available = self.runner.kv_bytes_available(ranks_here)
        return MemoryReport(
            rank=rank,
            weight_bytes=sizes.weight_bytes,
            checkpoint_bytes_read=sizes.checkpoint_bytes_read,
            kv_bytes_available=available,
            page_bytes=page_of(config.model, config.cache, self.topology).nbytes,
            layers=list(self.topology.layers),
            experts=whole_experts(config, self.topology),
        )

    @torch.inference_mode()
    def allocate(self, pages: int) -> None:
        """Make the KV pages and the resident batch."""
        config = self.config
        self._pages = pages
        self.state = BatchState(
            slots=config.scheduler.max_num_seqs,
            max_tokens=config.scheduler.max_model_len,
            groups=len(config.model.kv_groups),
            block_size=config.cache.block_size,
        )
        self.runner.allocate(pages, self.state)

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
        groups = len(self.config.model.kv_groups)
        usable = self._pages - 1  # a tiny cache shares them: this only tests that a forward goes through
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
        """`plan` will come. Optional; plans are announced, prepared, launched and finished in the same order."""
        self.runner.announce(plan)

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult | None:
        """Run one plan, with no other in flight. The driver answers; other ranks return None."""
        self.launch(self.prepare(plan))
        return self.finish()

    def may_prepare(self, plan: StepPlan) -> bool:
        """Whether to prepare `plan` before the launched steps are finished."""
        return bool(plan.slots) and self.runner.may_prepare(plan, self._runs())

    def prepare(self, plan: StepPlan) -> Step:
        """All that needs neither the device nor another rank; counts the step as done in the resident batch. What was
        prepared before is launched by now."""
        self.state.apply(plan)
        if plan.new or plan.released:
            self.runner.admit(plan)
        if not plan.slots:
            return Step(plan, None)
        rows = self.state.rows(plan)
        run = self.runner.prepare(plan, rows)
        self.state.advance(rows, plan.step)
        return Step(plan, run)

    def may_launch_ahead(self) -> bool:
        """Whether to launch the next step before the host finishes the launched ones and reports the last."""
        return self.runner.may_launch_ahead(self._runs())

    def _runs(self) -> list[Any]:
        return [step.run for step in self.launched if step.run is not None]

    def launch(self, step: Step) -> None:
        """Give a step to the device, once its inputs are on their way. Where that is this CPU, it is computed now."""
        if step.run is not None:
            self.runner.launch(step.run)
        self.launched.append(step)

    def rest(self) -> None:
        """Leave the core to others, if the oldest launched step leaves time for it."""
        if (run := self.launched[0].run) is not None:
            self.runner.rest(run)

    def patience_s(self) -> float:
        """How long to look for messages before looking at the device again. 0: time to finish the oldest step."""
        run = self.launched[0].run
        return 0.0 if run is None else self.runner.patience_s(run)

    def finish(self) -> StepResult | None:
        """Wait until the device has computed the oldest launched step. The driver answers."""
        step = self.launched[0]
        if step.run is not None:
            result = self.runner.finish(step.run)
        else:
            result = StepResult(step.plan.step, []) if self.topology.is_driver else None
        self.launched.popleft()
        return result

    # ------------------------------------------------------------------------------------------------ control

    def adopt_native(self) -> None:
        """Change over to what the native library has. Every rank does so between the same two steps."""
        assert not self.launched
        self.runner.adopt_native()

    def close(self) -> None:
        self.runner.close()
        self.groups.close()


def whole_experts(config: EngineConfig, topology: Topology) -> list[int]:
    """Expert ids that this rank holds whole, or [] when every expert is cut across the TP ranks."""
    moe = config.model.moe
    if moe is None or not topology.expert_parallel:
        return []
    return list(expert_range(moe.num_experts, topology.tp_size, topology.tp_rank))
