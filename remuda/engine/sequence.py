"""The state of one request inside the engine."""

from __future__ import annotations

from enum import IntEnum

from remuda.engine.kv.manager import NEVER, PageTable
from remuda.protocol.request import EngineRequest, TokenLogprobs

NON_FINITE = -1  # a rank's answer in place of a token when the logits were not finite


class Status(IntEnum):
    """Where a sequence is, and what moves it (functions of `scheduler.Scheduler`).

                 add                  _admit: a slot, pages of its cached prefix
        request -----> WAITING ------------------------------------------------> RUNNING
                        |   ^   not while a token is unseen, nor out of order    |    |
                        |   |                                                    |    |
                        |   +----------------------------------------------------+    |
                        |      _preempt: slot and pages go, computed = 0              |
                        |                                                             |
                        +---------------------------> FINISHED <----------------------+
                             finish: it ended, failed, or was aborted

    RUNNING is prefill until `computed` reaches `known`, then decode, as a member of a cohort, until the limit. What is
    still in flight for a sequence that left is ignored when it arrives; for a preempted one it is appended.
    """

    WAITING = 0  # new, or preempted (then tokens may still be on their way: `unseen`)
    RUNNING = 1  # has a slot
    FINISHED = 2


class Sequence:
    """Counts, in tokens:  computed <= known,  len(token_ids) <= known.

    `token_ids` are confirmed: the prompt and every output that the engine has seen. `known` also counts tokens that
    the ranks have sampled, or will have when the plans in flight have run. `computed` counts the tokens whose KV exists
    once those plans have run. A sequence decodes when known == computed + 1 and that last token is an output. Drafts
    in flight count as if they were right.
    """

    __slots__ = (
        "cached_tokens",
        "cohort",
        "computed",
        "drafted",
        "ending",
        "known",
        "last_step",
        "limit",
        "order",
        "prompt_len",
        "prompt_logprobs",
        "rejected",
        "request",
        "request_id",
        "slot",
        "started",
        "status",
        "table",
        "token_ids",
        "wake_at",
    )  # fmt: skip

    def __init__(self, request: EngineRequest, order: tuple[int, int], limit: int, table: PageTable) -> None:
        sampling = request.sampling
        self.request = request
        self.request_id = request.request_id
        self.order = order  # (priority, arrival number): what runs first and is preempted last
        self.limit = limit  # known tokens at which it ends
        self.table = table
        self.token_ids = [*request.prompt_token_ids, *request.emitted_token_ids]
        self.prompt_len = len(request.prompt_token_ids)
        self.ending = sampling.ending_token_ids | {NON_FINITE}
        self.known = len(self.token_ids)
        self.computed = 0
        self.status = Status.WAITING
        self.slot = -1
        self.cohort = -1  # of a decoding sequence
        self.last_step = -NEVER
        self.drafted = 0  # drafts in flight, counted as known and computed
        self.rejected = 0  # of those that came back, not counted any more: what the ranks do not know yet
        self.wake_at = self.known + 1  # confirmed length at which its results need more than an append
        self.started = bool(request.emitted_token_ids)  # the first token has been delivered
        self.cached_tokens = 0
        wants_prompt = sampling.prompt_logprobs is not None and not self.started
        self.prompt_logprobs: list[TokenLogprobs | None] | None = [None] * self.prompt_len if wants_prompt else None

    @property
    def unseen(self) -> int:
        """Tokens that plans in flight sample and whose values have not arrived."""
        return self.known - len(self.token_ids)

    @property
    def uncomputed(self) -> int:
        return self.known - self.computed
