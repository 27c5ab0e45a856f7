"""Messages between the engine core and its ranks.

Order is the contract: plans reach every rank in step order and every rank executes them in that order. From this
follows that a KV page freed by the engine while steps that still write to it are in flight may be handed out in a
later plan at once, and that a released slot may be reused in the same plan.
"""

from __future__ import annotations

import msgspec

from remuda.protocol.progress import PhaseProgress
from remuda.protocol.request import ImageInput, TokenLogprobs
from remuda.protocol.sampling import SamplingParams


class NewSequence(msgspec.Struct, frozen=True, array_like=True):
    """A sequence enters the batch state of the ranks (first time, or again after preemption)."""

    slot: int  # index into the ranks' batch state, 0 <= slot < max_num_seqs
    token_ids: list[int]  # every known token: the prompt and, after preemption, what was generated before
    prompt_len: int
    computed: int  # leading tokens whose KV is already in the pages (prefix cache)
    pages: list[list[int]]  # per KV group: page of block 0, 1, ...; 0 where a local group has none (never read)
    sampling: SamplingParams
    images: list[ImageInput] = []


class PageGrant(msgspec.Struct, frozen=True, array_like=True):
    """Pages appended to a sequence's tables, per KV group. A local group keeps stale leading entries: never read."""

    slot: int
    pages: list[list[int]]


class StepPlan(msgspec.Struct, frozen=True, tag="plan", array_like=True):
    """One micro-batch. Apply in this order: released, new, grants, rejected, then run `slots`.

    Row i runs the next `counts[i]` tokens of `slots[i]` (after those already computed). A row samples exactly when,
    after the step, all its known tokens are computed; `known` includes tokens sampled by earlier steps, also those
    whose value the engine has not seen yet. Rows that have sampled grow by one known token.

    A row that samples may carry drafts, guesses at what follows its known tokens. They run as if they were known
    (`counts[i]` includes them), the row samples a token after each as well, and grows by one more for each: until a
    later plan, at the latest the next that runs the slot, says how many of them were `rejected`. Those are then neither
    known nor computed. A sequence whose drafts are in flight is in no other plan.
    """

    step: int
    slots: list[int]
    counts: list[int]
    released: list[int] = []
    new: list[NewSequence] = []
    grants: list[PageGrant] = []
    drafts: list[list[int]] = []  # of each row; empty: no row has any
    rejected: list[tuple[int, int]] = []  # (slot, how many of the drafts that it ran last)


class PromptLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log-probabilities of prompt positions first, first+1, ... (position p is predicted by p-1, so first >= 1)."""

    slot: int
    first: int
    entries: list[TokenLogprobs]


class StepResult(msgspec.Struct, frozen=True, tag="result", array_like=True):
    """Answer of the last stage's TP rank 0 to one plan.

    `tokens` has those of the sampling rows, in row order: of each one, or, where it carried drafts, those that were
    right and the one after. -1 means that the logits were not finite. `logprobs` is empty if no row asked for any, else
    one entry (or None) per token.
    """

    step: int
    tokens: list[int]
    logprobs: list[TokenLogprobs | None] = []
    prompt_logprobs: list[PromptLogprobs] = []
    runs: list[int] = []  # if the plan had drafts, how many tokens each sampling row has


# ------------------------------------------------------------------------------------------------ start-up and control


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """First message of a rank. The engine refuses versions or config hashes other than its own."""

    rank: int
    node: int
    pid: int
    host: str
    version: str
    config_hash: str


class MemoryReport(msgspec.Struct, frozen=True, tag="memory"):
    """After the weights are in: what this rank can give to the KV cache."""

    rank: int
    weight_bytes: int
    checkpoint_bytes_read: int
    kv_bytes_available: int
    page_bytes: int  # of one KV page on this rank
    layers: list[int]  # global layer indices held
    experts: list[int]  # expert ids held whole (EP), or [] when every expert is cut across TP


class AllocateCache(msgspec.Struct, frozen=True, tag="allocate"):
    """Engine to ranks: the agreed number of pages. Page 0 is the null page and is never written by a sequence."""

    pages: int


class RankReady(msgspec.Struct, frozen=True, tag="ready"):
    """Self-test forward passed through every stage."""

    rank: int


class RankFailed(msgspec.Struct, frozen=True, tag="failed"):
    """A rank gives up: one-line message for the user, traceback for the log, `code` if it was a RemudaError."""

    rank: int
    node: int
    phase: str
    message: str
    traceback: str = ""
    code: str | None = None


class AdoptNative(msgspec.Struct, frozen=True, tag="adopt_native"):
    """Engine to ranks, between plans: the native kernels are built; switch to them now (all ranks at the same step)."""


class StopRank(msgspec.Struct, frozen=True, tag="stop"):
    pass


ToRank = StepPlan | AllocateCache | AdoptNative | StopRank
"""StepPlan is array_like, so that small plans stay small; wire.py sends it under its own frame kind."""

FromRank = Hello | PhaseProgress | MemoryReport | RankReady | RankFailed
