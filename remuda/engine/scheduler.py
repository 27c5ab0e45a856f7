"""Which tokens of which sequences run next: continuous batching over a paged cache, one step plan at a time.

Plans are made without having seen the tokens of the plans in flight. A sequence that turns out to have ended is taken
out by a later plan; what it still has in flight is ignored.
"""

from __future__ import annotations

from bisect import insort
from operator import attrgetter

import msgspec

from remuda.config.engine import EngineConfig
from remuda.engine.cohorts import DecodeCohorts
from remuda.engine.kv.manager import KVCacheManager
from remuda.engine.prefill import PrefillSizer
from remuda.engine.queue import WaitingQueue
from remuda.engine.sequence import Sequence, Status
from remuda.kv.groups import SequencePages
from remuda.protocol.errors import ConfigError
from remuda.protocol.step import NewSequence, PageGrant, StepPlan

_order = attrgetter("order")


class ScheduledStep:
    """A plan and whom its result belongs to. Slots may have new owners by the time the result arrives."""

    __slots__ = ("plan", "prompt_rows", "sampling")

    def __init__(self, plan: StepPlan, sampling: list[Sequence], prompt_rows: dict[int, Sequence]) -> None:
        self.plan = plan
        self.sampling = sampling  # sequences of the rows that sample, in row order
        self.prompt_rows = prompt_rows  # slot -> sequence that wants prompt logprobs


class _Draft:
    """The plan being built."""

    __slots__ = (
        "counts", "crossed", "grants", "new", "preempted", "prompts", "rows", "sampling", "share", "tokens", "victims",
    )  # fmt: skip

    def __init__(self, tokens: int) -> None:
        self.rows: list[Sequence] = []
        self.counts: list[int] = []
        self.sampling: list[Sequence] = []
        self.prompts: list[Sequence] = []  # rows that prefill
        self.new: list[NewSequence] = []
        self.grants: list[PageGrant] = []
        self.crossed: list[Sequence] = []  # past a border of what they see: pages to give back once the plan stands
        self.victims: list[Sequence] | None = None  # running sequences by order, latest last; made when needed
        self.preempted = False
        self.tokens = tokens  # still allowed in this plan
        self.share = 0.0  # cost of prefill still allowed, see PrefillSizer


class Scheduler:
    """Owns every sequence from `add` to `finish`, their slots and their pages."""

    def __init__(self, config: EngineConfig, num_pages: int) -> None:
        limits = config.scheduler
        self._max_tokens = limits.max_num_batched_tokens
        self._chunk_cap = limits.max_prefill_chunk or self._max_tokens
        self._stages = config.parallel.pipeline_parallel_size
        self.steps_in_flight = limits.steps_in_flight or self._stages + 1
        self._max_unseen = -(-self.steps_in_flight // self._stages)
        groups, block_size = config.model.kv_groups, config.cache.block_size
        self.kv = KVCacheManager(groups, num_pages, block_size, config.cache.enable_prefix_caching)
        self.longest_sequence = SequencePages(groups, block_size).longest(num_pages - 1, limits.max_model_len)
        if self.longest_sequence < 2:
            raise ConfigError(f"{num_pages - 1} KV pages do not hold one sequence: give the cache more memory")
        self.waiting = WaitingQueue(limits.max_waiting)
        self.running: dict[int, Sequence] = {}  # by slot
        self._free_slots = list(range(limits.max_num_seqs - 1, -1, -1))
        self._released: list[int] = []  # slots to tell the ranks about in the next plan
        self._prefilling: list[Sequence] = []  # by order
        self._cohorts = DecodeCohorts(self._stages)
        self._sizer = PrefillSizer(config.model, self._stages)
        self._step = 0
        self.preemptions = 0
        self.prefix_queries_tokens = 0
        self.prefix_hits_tokens = 0

    def check_room(self) -> None:
        """Raise QueueFull if the bounded queue takes nobody now."""
        self.waiting.check_room(len(self._free_slots))

    def add(self, seq: Sequence) -> None:
        self.waiting.push(seq)

    def finish(self, seq: Sequence) -> None:
        """Forget a sequence at once, wherever it is. Its pages and slot are free for the next plan."""
        if seq.status is Status.RUNNING:
            seq.status = Status.FINISHED
            self._withdraw(seq)
        elif seq.status is Status.WAITING:
            seq.status = Status.FINISHED
            self.waiting.discard(seq)

    def cache_blocks(self, seq: Sequence, length: int) -> None:
        """Offer the blocks of the first `length` tokens, all confirmed and computed, to the prefix cache."""
        request = seq.request
        self.kv.cache_blocks(seq.table, seq.token_ids, request.images, request.cache_salt, length)

    # -------------------------------------------------------------------------------------------- one plan

    def schedule(self) -> ScheduledStep | None:
        """The next micro-batch: decodes of the cohort whose turn it is, then prompts. None: nothing can run now."""
        draft = _Draft(self._max_tokens)
        self._decode(draft, relaxed=False)
        if draft.tokens > 0:
            self._prefill(draft)
        if not draft.rows:
            self._decode(draft, relaxed=True)
        return self._seal(draft) if draft.rows else None

    def _decode(self, draft: _Draft, relaxed: bool) -> None:
        """Add a row for each ready member of the first cohort that has one.

        Ready: its last token was sampled a whole round of the pipeline ago, or has been seen. When nothing else can run
        (relaxed), sooner is fine as well: then a stage waits for the token, which costs less than a turn of the engine.
        """
        for cohort in self._cohorts.turns():
            ready = self._cohorts.members(cohort)
            newest = self._step - self._stages
            if relaxed:
                ready = [seq for seq in ready if seq.unseen < self._max_unseen]
            elif self._stages > 1:
                ready = [seq for seq in ready if seq.last_step <= newest or not seq.unseen]
            self._decode_rows(draft, ready)
            if draft.rows:
                self._cohorts.pass_turn(cohort)
                return

    def _decode_rows(self, draft: _Draft, ready: list[Sequence]) -> None:
        rows, step, budget = draft.rows, self._step, draft.tokens
        append = rows.append
        for seq in ready:
            end = seq.computed + 1
            if seq.slot < 0 or (end >= seq.table.work_at and not self._make_room(draft, seq, end)):
                continue  # preempted while this plan was built, or short of pages
            seq.computed = end
            seq.known = known = end + 1
            seq.last_step = step
            append(seq)
            if known >= seq.limit:
                self._cohorts.leave(seq)
            if len(rows) == budget:
                break
        draft.counts = [1] * len(rows)
        draft.sampling = rows.copy()
        draft.tokens = budget - len(rows)

    def _prefill(self, draft: _Draft) -> None:
        """Fill what is left with chunks of prompts: those begun first, then newcomers."""
        waiting_tokens = self.waiting.tokens + sum(seq.uncomputed for seq in self._prefilling)
        if not waiting_tokens:
            return
        draft.share = self._sizer.share(waiting_tokens, draft.tokens)
        for seq in self._prefilling.copy():
            if draft.tokens <= 0 or draft.share < 1:
                return
            if seq.slot >= 0:  # else preempted while this plan was built
                self._prefill_row(draft, seq)
        promised = sum(self._missing_pages(seq) for seq in self._prefilling)
        while draft.tokens > 0 and draft.share >= 1 and self._free_slots and not draft.preempted:
            head = self.waiting.head()
            if head is None or head.unseen or not self._admit(head, promised):
                return  # an unseen token of a preempted sequence is on its way: strict order, so everyone waits for it
            self._prefill_row(draft, head, new=True)
            promised += self._missing_pages(head)

    def _prefill_row(self, draft: _Draft, seq: Sequence, new: bool = False) -> None:
        start = seq.computed
        affordable = self._sizer.tokens(start, draft.share)
        end = start + min(seq.uncomputed, draft.tokens, self._chunk_cap, affordable)
        while (room := self.kv.room(seq.table)) <= start:
            if not self._preempt_later_than(draft, seq):
                return
        end = min(end, room)
        if end >= seq.table.border:
            draft.crossed.append(seq)
        granted = self.kv.grow(seq.table, end)
        if new:
            draft.new.append(self._introduce(seq))
        elif granted is not None:
            draft.grants.append(PageGrant(seq.slot, granted))
        seq.computed = end
        seq.last_step = self._step
        draft.rows.append(seq)
        draft.counts.append(end - start)
        draft.prompts.append(seq)
        draft.tokens -= end - start
        draft.share -= self._sizer.cost(start, end - start)
        if end == seq.known:
            draft.sampling.append(seq)
            self._prefilling.remove(seq)
            seq.known += 1
            if seq.known < seq.limit:
                self._cohorts.join(seq)

    def _seal(self, draft: _Draft) -> ScheduledStep:
        """Make the plan. Only now may its prompts be shared and the pages that it left behind be given back."""
        prompt_rows = {}
        for seq in draft.prompts:
            self.cache_blocks(seq, min(seq.computed, len(seq.token_ids)))
            if seq.prompt_logprobs is not None:
                prompt_rows[seq.slot] = seq
        for seq in draft.crossed:
            self.kv.trim(seq.table, seq.computed)
        slots = [seq.slot for seq in draft.rows]
        plan = StepPlan(self._step, slots, draft.counts, self._released, draft.new, draft.grants)
        self._released = []
        self._step += 1
        return ScheduledStep(plan, draft.sampling, prompt_rows)

    # ------------------------------------------------------------------------------------ coming and going

    def _admit(self, seq: Sequence, promised: int) -> bool:
        """Give the head of the queue a slot and its cached prefix, if the rest of its tokens will fit as well.

        `promised` pages are free but wanted by prompts already begun.
        """
        request, first_time = seq.request, not seq.started and seq.known == seq.prompt_len
        if seq.prompt_logprobs is None:  # logits of cached positions are not computed again
            seq.computed = self.kv.match(seq.table, seq.token_ids, request.images, request.cache_salt)
        if self.running and self._missing_pages(seq) + promised > self.kv.pool.available:
            self.kv.release(seq.table)
            seq.computed = 0
            return False
        self.waiting.pop()
        seq.status = Status.RUNNING
        seq.slot = self._free_slots.pop()
        self.running[seq.slot] = seq
        insort(self._prefilling, seq, key=_order)
        if first_time:
            seq.cached_tokens = seq.computed
            self.prefix_queries_tokens += seq.prompt_len
            self.prefix_hits_tokens += seq.computed
        return True

    def _missing_pages(self, seq: Sequence) -> int:
        return max(0, self.kv.pages_of(seq.known) - self.kv.held(seq.table))

    def _introduce(self, seq: Sequence) -> NewSequence:
        sampling = seq.request.sampling
        if seq.prompt_logprobs is None and sampling.prompt_logprobs is not None:  # delivered before a preemption
            sampling = msgspec.structs.replace(sampling, prompt_logprobs=None)
        return NewSequence(
            slot=seq.slot,
            token_ids=seq.token_ids.copy(),
            prompt_len=seq.prompt_len,
            computed=seq.computed,
            pages=[pages.copy() for pages in seq.table.pages],
            sampling=sampling,
            images=seq.request.images,
        )

    def _make_room(self, draft: _Draft, seq: Sequence, end: int) -> bool:
        """A decoding sequence needs a page or has reached a border of what it sees."""
        while self.kv.room(seq.table) < end:
            if not self._preempt_later_than(draft, seq):
                return False
        if end >= seq.table.border:
            draft.crossed.append(seq)
        granted = self.kv.grow(seq.table, end)
        if granted is not None:
            draft.grants.append(PageGrant(seq.slot, granted))
        return True

    def _preempt_later_than(self, draft: _Draft, seq: Sequence) -> bool:
        """Take pages and slot from the last sequence in order that comes after `seq` and is not part of this plan."""
        if draft.victims is None:
            draft.victims = sorted(self.running.values(), key=_order)
        while draft.victims and draft.victims[-1].order > seq.order:
            victim = draft.victims.pop()
            if victim.slot >= 0 and victim.last_step != self._step:
                self._preempt(victim)
                draft.preempted = True
                return True
        return False

    def _preempt(self, seq: Sequence) -> None:
        """Back to the queue. Tokens still unseen arrive and are appended as usual; it is not admitted before that."""
        self._withdraw(seq)
        seq.status = Status.WAITING
        seq.computed = 0
        self.waiting.push(seq)
        self.preemptions += 1

    def _withdraw(self, seq: Sequence) -> None:
        """Take a running sequence's slot, pages and place in the round."""
        self.kv.release(seq.table)
        del self.running[seq.slot]
        self._free_slots.append(seq.slot)
        self._released.append(seq.slot)
        if seq.cohort >= 0:
            self._cohorts.leave(seq)
        elif seq.computed < seq.known and seq in self._prefilling:
            self._prefilling.remove(seq)
        seq.slot = -1

    def check(self) -> None:
        """Assert that pages, slots and sequences agree; for tests, after every step."""
        self.kv.check(seq.table for seq in self.running.values())
        for slot, seq in self.running.items():
            assert seq.slot == slot and seq.status is Status.RUNNING
            assert len(seq.token_ids) <= seq.known and seq.computed <= seq.known <= seq.limit
            assert seq.table.blocks * self.kv.block_size >= seq.computed
        assert len(self._free_slots) + len(self.running) == len({*self._free_slots, *self.running})
        assert len(self._cohorts) == sum(seq.cohort >= 0 for seq in self.running.values())
