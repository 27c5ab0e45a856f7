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
from remuda.engine.drafting import Drafter
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


class _Sketch:
    """The plan being built."""

    __slots__ = (
        "counts", "crossed", "drafts", "grants", "new", "preempted", "prompts", "rejected", "rows", "sampling", "share",
        "tokens", "victims",
    )  # fmt: skip

    def __init__(self, tokens: int) -> None:
        self.rows: list[Sequence] = []
        self.counts: list[int] = []
        self.drafts: list[list[int]] = []  # of the first rows; empty: of none
        self.rejected: list[tuple[int, int]] = []
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

    def __init__(self, config: EngineConfig, num_pages: int, drafter: Drafter | None = None) -> None:
        self.drafter = drafter  # may be exchanged while no plan is in flight
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
        sketch = _Sketch(self._max_tokens)
        self._decode(sketch, relaxed=False)
        if sketch.tokens > 0:
            self._prefill(sketch)
        if not sketch.rows:
            self._decode(sketch, relaxed=True)
        return self._seal(sketch) if sketch.rows else None

    def _decode(self, sketch: _Sketch, relaxed: bool) -> None:
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
            if self.drafter is None:
                self._decode_rows(sketch, ready)
            else:
                self._draft_rows(sketch, [seq for seq in ready if not seq.unseen], self.drafter)
            if sketch.rows:
                self._cohorts.pass_turn(cohort)
                return

    def _decode_rows(self, sketch: _Sketch, ready: list[Sequence]) -> None:
        rows, step, budget = sketch.rows, self._step, sketch.tokens
        append = rows.append
        for seq in ready:
            end = seq.computed + 1
            if seq.slot < 0 or (end >= seq.table.work_at and not self._make_room(sketch, seq, end)):
                continue  # preempted while this plan was built, or short of pages
            seq.computed = end
            seq.known = known = end + 1
            seq.last_step = step
            append(seq)
            if known >= seq.limit:
                self._cohorts.leave(seq)
            if len(rows) == budget:
                break
        sketch.counts = [1] * len(rows)
        sketch.sampling = rows.copy()
        sketch.tokens = budget - len(rows)

    def _draft_rows(self, sketch: _Sketch, ready: list[Sequence], drafter: Drafter) -> None:
        """Rows of sequences whose every token has been seen, with what the drafter proposes to follow.

        Each row has its one token before any has drafts. Rows with drafts come last: those of one token are quicker.
        """
        plain: list[Sequence] = []
        drafting: list[tuple[Sequence, list[int]]] = []
        spare = sketch.tokens - len(ready)
        for seq in ready[: sketch.tokens]:
            end = seq.computed + 1
            if seq.slot < 0 or (end >= seq.table.work_at and not self._make_room(sketch, seq, end)):
                continue  # preempted while this plan was built, or short of pages
            seq.last_step = self._step
            proposed = self._affordable_drafts(sketch, seq, drafter, end, spare)
            spare -= len(proposed)
            seq.drafted = len(proposed)
            seq.computed = end + len(proposed)
            seq.known = seq.computed + 1
            if seq.rejected:
                sketch.rejected.append((seq.slot, seq.rejected))
                seq.rejected = 0
            if proposed:
                drafting.append((seq, proposed))
                continue
            plain.append(seq)
            if seq.known >= seq.limit:
                self._cohorts.leave(seq)
        sketch.rows = plain + [seq for seq, _ in drafting]
        sketch.counts = [1] * len(plain) + [1 + len(proposed) for _, proposed in drafting]
        if drafting:
            sketch.drafts = [[] for _ in plain] + [proposed for _, proposed in drafting]
        sketch.sampling = sketch.rows.copy()
        sketch.tokens -= sum(sketch.counts)

    def _affordable_drafts(self, sketch: _Sketch, seq: Sequence, drafter: Drafter, end: int, spare: int) -> list[int]:
        """Drafts behind position `end` that nobody is preempted for, that stay within the sequence's limit, and that do
        not cross a border of what it sees: if they are rejected, the pages before it are needed again."""
        most = min(spare, seq.limit - end - 1, seq.table.border - 1 - end, self.kv.room(seq.table) - end)
        proposed = drafter.propose(seq, most)[:most] if most > 0 else []
        if proposed and (granted := self.kv.grow(seq.table, end + len(proposed))) is not None:
            sketch.grants.append(PageGrant(seq.slot, granted))
        return proposed

    def confirm_drafts(self, seq: Sequence, right: int) -> None:
        """The first `right` of the drafts that `seq` had in flight were what the model chose."""
        wrong, seq.drafted = seq.drafted - right, 0
        seq.known -= wrong
        if seq.status is Status.RUNNING:  # else preempted meanwhile: it starts again from what is known
            seq.computed -= wrong
            seq.rejected = wrong

    def _prefill(self, sketch: _Sketch) -> None:
        """Fill what is left with chunks of prompts: those begun first, then newcomers."""
        waiting_tokens = self.waiting.tokens + sum(seq.uncomputed for seq in self._prefilling)
        if not waiting_tokens:
            return
        sketch.share = self._sizer.share(waiting_tokens, sketch.tokens)
        for seq in self._prefilling.copy():
            if sketch.tokens <= 0 or sketch.share < 1:
                return
            if seq.slot >= 0:  # else preempted while this plan was built
                self._prefill_row(sketch, seq)
        promised = sum(self._missing_pages(seq) for seq in self._prefilling)
        while sketch.tokens > 0 and sketch.share >= 1 and self._free_slots and not sketch.preempted:
            head = self.waiting.head()
            if head is None or head.unseen or not self._admit(head, promised):
                return  # an unseen token of a preempted sequence is on its way: strict order, so everyone waits for it
            self._prefill_row(sketch, head, new=True)
            promised += self._missing_pages(head)

    def _prefill_row(self, sketch: _Sketch, seq: Sequence, new: bool = False) -> None:
        start = seq.computed
        affordable = self._sizer.tokens(start, sketch.share)
        end = start + min(seq.uncomputed, sketch.tokens, self._chunk_cap, affordable)
        while (room := self.kv.room(seq.table)) <= start:
            if not self._preempt_later_than(sketch, seq):
                return
        end = min(end, room)
        if end >= seq.table.border:
            sketch.crossed.append(seq)
        granted = self.kv.grow(seq.table, end)
        if new:
            sketch.new.append(self._introduce(seq))
        elif granted is not None:
            sketch.grants.append(PageGrant(seq.slot, granted))
        seq.computed = end
        seq.last_step = self._step
        sketch.rows.append(seq)
        sketch.counts.append(end - start)
        sketch.prompts.append(seq)
        sketch.tokens -= end - start
        sketch.share -= self._sizer.cost(start, end - start)
        if end == seq.known:
            sketch.sampling.append(seq)
            self._prefilling.remove(seq)
            seq.known += 1
            if seq.known < seq.limit:
                self._cohorts.join(seq)

    def _seal(self, sketch: _Sketch) -> ScheduledStep:
        """Make the plan. Only now may its prompts be shared and the pages that it left behind be given back."""
        prompt_rows = {}
        for seq in sketch.prompts:
            self.cache_blocks(seq, min(seq.computed, len(seq.token_ids)))
            if seq.prompt_logprobs is not None:
                prompt_rows[seq.slot] = seq
        for seq in sketch.crossed:
            self.kv.trim(seq.table, seq.computed)
        slots = [seq.slot for seq in sketch.rows]
        if sketch.drafts:
            sketch.drafts += [[] for _ in sketch.prompts]
        plan = StepPlan(
            self._step, slots, sketch.counts, self._released, sketch.new, sketch.grants, sketch.drafts, sketch.rejected
        )
        self._released = []
        self._step += 1
        return ScheduledStep(plan, sketch.sampling, prompt_rows)

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

    def _make_room(self, sketch: _Sketch, seq: Sequence, end: int) -> bool:
        """A decoding sequence needs a page or has reached a border of what it sees."""
        while self.kv.room(seq.table) < end:
            if not self._preempt_later_than(sketch, seq):
                return False
        if end >= seq.table.border:
            sketch.crossed.append(seq)
        granted = self.kv.grow(seq.table, end)
        if granted is not None:
            sketch.grants.append(PageGrant(seq.slot, granted))
        return True

    def _preempt_later_than(self, sketch: _Sketch, seq: Sequence) -> bool:
        """Take pages and slot from the last sequence in order that comes after `seq` and is not part of this plan."""
        if sketch.victims is None:
            sketch.victims = sorted(self.running.values(), key=_order)
        while sketch.victims and sketch.victims[-1].order > seq.order:
            victim = sketch.victims.pop()
            if victim.slot >= 0 and victim.last_step != self._step:
                self._preempt(victim)
                sketch.preempted = True
                return True
        return False

    def _preempt(self, seq: Sequence) -> None:
        """Back to the queue. Tokens still unseen arrive and are appended as usual; it is not admitted before that."""
        self._withdraw(seq)
        seq.status = Status.WAITING
        seq.computed = seq.rejected = 0
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
