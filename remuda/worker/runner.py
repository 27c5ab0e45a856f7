"""What a worker needs of the device that it computes on.

The worker knows what a plan means: which rows run, at which positions, in which pages (`BatchState`). Its runner owns
everything whose place is the device: weights, KV pages, the tokens of resident sequences, the inputs of a step, its
execution, the rows of images, sampling, and what travels over the pipeline link.

A step is prepared, launched and finished, each in the order of plans. Between `launch` and `finish` the device may be
at work: only `finish` reads values, and only values that it has waited for. Whatever else a step needs of the tokens
of an earlier one (to embed them, to penalize them, to send them to the first stage) it takes from the runner's token
buffer, in the device's own order. This holds for every runner:

- a step is launched before the next one is prepared or admitted, so `prepare` and `launch` may read `BatchState`;
- `launch` also sends: hidden states to the next stage, tokens to the first, in the order of plans. Which collectives
  run, and in which order, follows from plans alone, never from timing, because TP ranks must agree on it;
- up to `max_launched` steps are launched and not finished. While a runner says `may_launch_ahead`, the next step is
  launched before the oldest is finished.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from remuda.protocol.step import StepPlan, StepResult
from remuda.weights.loader import LoadReport, Progress
from remuda.worker.state import BatchState, Rows

Run = TypeVar("Run")  # a runner's own record of one step with rows


class Runner(Protocol[Run]):
    """One device of one rank. Life: `load`, `allocate`, then any number of steps, `close`. All under inference_mode."""

    max_launched: int  # steps that may be launched and not finished; 1: the device computes inside `launch`

    # ------------------------------------------------------------------------------------------------ start-up

    def load(self, progress: Progress) -> LoadReport:
        """Build this rank's shard and fill it. Raises CheckpointError; reports progress in bytes."""
        ...

    def kv_bytes_available(self, ranks_on_node: int) -> int:
        """Bytes for KV pages on this rank, once every rank of the node holds its weights. Collective."""
        ...

    def allocate(self, pages: int, state: BatchState) -> None:
        """Make the KV pages and all buffers. `state` is the worker's: to be read, not to be changed."""
        ...

    # ------------------------------------------------------------------------------------------------ steps

    def announce(self, plan: StepPlan) -> None:
        """`plan` will come: hidden states may be expected early. Optional; in the order of plans."""
        ...

    def admit(self, plan: StepPlan) -> None:
        """Take over the plan's new sequences (tokens, sampling parameters, images), which `state` already holds, and
        forget those released. Called before `prepare`, for plans that have any."""
        ...

    def may_prepare(self, plan: StepPlan, launched: Sequence[Run]) -> bool:
        """Whether to prepare `plan` while the `launched` steps (oldest first) are unfinished."""
        ...

    def prepare(self, plan: StepPlan, rows: Rows) -> Run:
        """All that needs neither the device nor another rank: a snapshot of what `state` says of the step."""
        ...

    def may_launch_ahead(self, launched: Sequence[Run]) -> bool:
        """Whether to launch one more step before the `launched` ones (oldest first) are finished and the result of the
        last finished one is reported. May wait until the device has computed the oldest."""
        ...

    def launch(self, run: Run) -> None:
        """Give the step to the device: inputs, layers, sampling, sends. Waits, if at all, for inputs of other ranks."""
        ...

    def rest(self, run: Run) -> None:
        """After a launch: leave the core for a while, where ranks share cores and the device computes beside them."""
        ...

    def patience_s(self, run: Run) -> float:
        """How long the host may look for messages before it looks at the device again. 0: go and finish the step."""
        ...

    def finish(self, run: Run) -> StepResult | None:
        """Wait until the device has computed the step. The driver answers, other ranks return None."""
        ...

    # ------------------------------------------------------------------------------------------------ control

    def adopt_native(self) -> None:
        """Change over to better kernels, if there are any for this device. No step is in flight."""
        ...

    def close(self) -> None:
        """Let go of the device. The groups are closed by the worker, afterwards."""
        ...


AnyRunner = Runner[Any]
