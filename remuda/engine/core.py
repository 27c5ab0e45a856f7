"""The engine core: the loop that turns requests into step plans and results into outputs."""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Iterable
from itertools import islice, repeat
from time import monotonic

from remuda.config.engine import EngineConfig
from remuda.engine.drafting import Drafter, as_one
from remuda.engine.kv.manager import NEVER
from remuda.engine.ports import Executor, StartReport
from remuda.engine.scheduler import ScheduledStep, Scheduler
from remuda.engine.sequence import NON_FINITE, Sequence, Status
from remuda.protocol.errors import InvalidRequest, ReplicaDied
from remuda.protocol.request import (
    EngineRequest,
    EngineStats,
    FinishReason,
    RequestError,
    RequestOutput,
    StepOutputs,
    TokenLogprobs,
)
from remuda.protocol.step import StepResult

STATS_INTERVAL_S = 0.5
_NOT_FINITE = RequestError(
    "the model's logits were not finite (overflow or a damaged checkpoint); the request was ended",
    http_status=500,
    code="non_finite_logits",
)


class EngineCore:
    """Requests in, outputs out, for one replica. Single-threaded; raises ReplicaDied when a rank is gone.

    `executor` has been started, which gave `start`; who started it ends it, after `close`. With a `drafter`, decoding
    sequences carry what it proposes.
    """

    def __init__(
        self, config: EngineConfig, executor: Executor, start: StartReport, drafter: Drafter | None = None
    ) -> None:
        self.config = config
        self.executor = executor
        self.scheduler = Scheduler(config, start.kv_pages, drafter)
        self._caching = config.cache.enable_prefix_caching
        self._block_size = config.cache.block_size
        wanted = start.plans_in_flight
        self._immediate = wanted == 1  # a plan runs inside `submit`: planning ahead of it would only delay tokens
        self._max_in_flight = config.scheduler.steps_in_flight or wanted or self.scheduler.steps_in_flight
        self._sequences: dict[str, Sequence] = {}
        self._in_flight: deque[ScheduledStep] = deque()
        self._arrivals = 0
        self._steps = 0
        self._prompt_tokens = 0
        self._generated_tokens = 0
        self._stats_due_s = 0.0
        self._cut_off = False  # a step ended halfway: what is scheduled and what the ranks know no longer agree

    # -------------------------------------------------------------------------------------------- the loop

    @property
    def has_work(self) -> bool:
        """Whether calling `step` again can bring an output or let the ranks finish what they have begun."""
        return bool(self._sequences or self._in_flight)

    def step(self, block: bool = True) -> StepOutputs | None:
        """Keep the ranks busy, and return what their results have brought since the last call (None: nothing).

        With `block`, wait for a result if some step is in flight.
        """
        if self._cut_off:
            raise ReplicaDied("the engine was closed, or a step of it was cut off: start it again")
        self._launch()
        results = self.executor.poll()
        if block and self._in_flight and not results:
            results = self._wait()
        outputs: list[RequestOutput] = []
        for result in results:
            self._apply(result, outputs)
        if not self._immediate:
            self._launch()  # before the caller spends time on the outputs
        now = monotonic()
        if outputs and now >= self._stats_due_s:
            self._stats_due_s = now + STATS_INTERVAL_S
            return StepOutputs(outputs, self.stats())
        return StepOutputs(outputs) if outputs else None

    def _launch(self) -> None:
        """Have as many plans in flight as the pipeline takes."""
        try:
            while len(self._in_flight) < self._max_in_flight:
                scheduled = self.scheduler.schedule()
                if scheduled is None:
                    assert self._in_flight or not self._sequences, "the scheduler is stuck"
                    return
                self._in_flight.append(scheduled)
                self.executor.submit(scheduled.plan)
        except BaseException:
            self._cut_off = True
            raise

    def _wait(self) -> list[StepResult]:
        descriptors = self.executor.filenos()
        if descriptors:
            poller = select.poll()
            for descriptor in descriptors:
                poller.register(descriptor, select.POLLIN)
            poller.poll()
        return self.executor.poll(block=True)

    def _apply(self, result: StepResult, outputs: list[RequestOutput]) -> None:
        """Give each sampled token to its sequence; what came for a sequence that has ended meanwhile is dropped."""
        scheduled = self._in_flight.popleft()
        assert result.step == scheduled.plan.step, f"result of step {result.step}, not {scheduled.plan.step}"
        self._steps += 1
        if result.prompt_logprobs:
            _keep_prompt_logprobs(result, scheduled)
        if scheduled.plan.drafts:
            self._apply_runs(result, scheduled, outputs)
            return
        assert len(result.tokens) == len(scheduled.sampling), "ranks and engine disagree on which rows sample"
        finished, emit, before = Status.FINISHED, outputs.append, len(outputs)
        each_logprobs = result.logprobs or repeat(None)
        for seq, token, logprobs in zip(scheduled.sampling, result.tokens, each_logprobs, strict=False):
            if seq.status is finished:
                continue
            ids = seq.token_ids
            length = len(ids) + 1
            if length >= seq.wake_at or token in seq.ending:
                self._deliver(seq, token, logprobs, outputs)
            else:
                ids.append(token)
                emit(RequestOutput(seq.request_id, [token], None, None, [logprobs] if logprobs else None))
        self._generated_tokens += len(outputs) - before

    def _apply_runs(self, result: StepResult, scheduled: ScheduledStep, outputs: list[RequestOutput]) -> None:
        """The same where some rows carried drafts: one output with all the tokens of a row, as far as it goes."""
        assert len(result.runs) == len(scheduled.sampling), "ranks and engine disagree on which rows sample"
        tokens, each_logprobs = iter(result.tokens), iter(result.logprobs or repeat(None))
        for seq, count in zip(scheduled.sampling, result.runs, strict=True):
            run = list(zip(islice(tokens, count), islice(each_logprobs, count), strict=True))
            if seq.status is Status.FINISHED:
                continue
            self.scheduler.confirm_drafts(seq, count - 1)
            found: list[RequestOutput] = []
            for token, logprobs in run:
                self._deliver(seq, token, logprobs, found)
                if found[-1].finish_reason is not None:
                    break
            output = as_one(found)
            outputs.append(output)
            self._generated_tokens += len(output.token_ids)

    # ---------------------------------------------------------------------------------- tokens that matter

    def _deliver(self, seq: Sequence, token: int, logprobs: TokenLogprobs | None, outputs: list[RequestOutput]) -> None:
        """Any token; above all a first one, one that fills a block, or one that ends the request."""
        if token == NON_FINITE:
            self._forget(seq)
            outputs.append(RequestOutput(seq.request_id, [], FinishReason.ERROR, error=_NOT_FINITE))
            return
        seq.token_ids.append(token)
        length = len(seq.token_ids)
        if self._caching:
            self.scheduler.cache_blocks(seq, length - 1)  # the last token is not computed yet
        reason, stop_token_id = self._finish_reason(seq, token)
        first = not seq.started
        outputs.append(
            RequestOutput(
                request_id=seq.request_id,
                token_ids=[token],
                finish_reason=reason,
                stop_token_id=stop_token_id,
                logprobs=[logprobs] if logprobs else None,
                prompt_logprobs=seq.prompt_logprobs if first else None,
                cached_tokens=seq.cached_tokens if first else 0,
            )
        )
        if first:
            seq.started = True
            seq.prompt_logprobs = None
            self._prompt_tokens += seq.prompt_len
        if reason is not None:
            self._forget(seq)
        else:
            next_block = (length // self._block_size + 1) * self._block_size + 1 if self._caching else NEVER
            seq.wake_at = min(seq.limit, next_block)

    def _finish_reason(self, seq: Sequence, token: int) -> tuple[FinishReason | None, int | None]:
        sampling = seq.request.sampling
        length = len(seq.token_ids)
        if token in seq.ending and length > seq.prompt_len + sampling.min_tokens:
            is_eos = not sampling.ignore_eos and token in sampling.eos_token_ids
            return FinishReason.STOP, None if is_eos else token
        return (FinishReason.LENGTH if length >= seq.limit else None), None

    def _forget(self, seq: Sequence) -> None:
        self.scheduler.finish(seq)
        del self._sequences[seq.request_id]

    # -------------------------------------------------------------------------------------------- requests

    def add(self, request: EngineRequest) -> None:
        """Queue a request. Raises InvalidRequest (it can never run) or QueueFull (come back later)."""
        self._check(request)
        limit = self._limit(request)
        self._check_emitted(request, limit)
        self.scheduler.check_room()
        priority = request.priority if self.config.scheduler.policy == "priority" else 0
        self._arrivals += 1
        seq = Sequence(request, (priority, self._arrivals), limit, self.scheduler.kv.new_table())
        self._sequences[request.request_id] = seq
        self.scheduler.add(seq)

    def abort(self, request_ids: Iterable[str]) -> None:
        """End requests at once, without an output. Unknown ids are ended already."""
        for request_id in request_ids:
            if (seq := self._sequences.get(request_id)) is not None:
                self._forget(seq)

    def _limit(self, request: EngineRequest) -> int:
        """Tokens of prompt and output together at which it ends."""
        max_tokens, longest = request.sampling.max_tokens, self.scheduler.longest_sequence
        return longest if max_tokens is None else min(longest, len(request.prompt_token_ids) + max_tokens)

    def _check(self, request: EngineRequest) -> None:
        ids, scheduler = request.prompt_token_ids, self.scheduler
        if request.request_id in self._sequences:
            raise InvalidRequest(f"request id {request.request_id!r} is in use", param="request_id")
        if not ids:
            raise InvalidRequest("the prompt is empty", param="prompt")
        if min(ids) < 0 or max(ids) >= self.config.model.vocab_size:
            raise InvalidRequest(
                f"the prompt has a token id outside the vocabulary of {self.config.model.vocab_size}", param="prompt"
            )
        max_model_len = self.config.scheduler.max_model_len
        if len(ids) >= max_model_len:
            raise InvalidRequest(
                f"the prompt has {len(ids)} tokens; with at least one to generate, at most {max_model_len - 1} fit "
                f"the model length of {max_model_len} (--max-model-len)",
                param="prompt",
                code="context_length_exceeded",
            )
        if len(ids) >= scheduler.longest_sequence:
            raise InvalidRequest(
                f"the prompt has {len(ids)} tokens, but the KV cache holds only {scheduler.longest_sequence}: "
                "shorten it, or give the server more cache memory",
                param="prompt",
                code="context_length_exceeded",
            )
        if any(not 0 <= image.start < image.start + image.length <= len(ids) for image in request.images):
            raise InvalidRequest("an image lies outside the prompt", param="images")

    def _check_emitted(self, request: EngineRequest, limit: int) -> None:
        emitted, vocab_size = request.emitted_token_ids, self.config.model.vocab_size
        if not emitted:
            return
        if min(emitted) < 0 or max(emitted) >= vocab_size:
            raise InvalidRequest(f"a token outside the vocabulary of {vocab_size}", param="emitted_token_ids")
        length = len(request.prompt_token_ids) + len(emitted)
        if length >= limit:
            raise InvalidRequest(
                f"prompt and emitted tokens are {length}, and the request ends at {limit}: nothing is left",
                param="emitted_token_ids",
            )

    # ----------------------------------------------------------------------------------------------- state

    def stats(self) -> EngineStats:
        scheduler = self.scheduler
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            kv_pages_total=scheduler.kv.pool.num_pages - 1,
            kv_pages_used=scheduler.kv.pool.used,
            steps=self._steps,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            preemptions=scheduler.preemptions,
            prefix_queries_tokens=scheduler.prefix_queries_tokens,
            prefix_hits_tokens=scheduler.prefix_hits_tokens,
        )

    def reset_prefix_cache(self) -> None:
        """Forget every cached block; running requests go on."""
        self.scheduler.kv.reset_prefix_cache()

    def close(self) -> None:
        """Run no more steps: the ranks are about to end. Idempotent."""
        self._cut_off = True


def _keep_prompt_logprobs(result: StepResult, scheduled: ScheduledStep) -> None:
    """Write each chunk's part into its place: a part that comes again after a preemption changes nothing."""
    for part in result.prompt_logprobs:
        seq = scheduled.prompt_rows.get(part.slot)
        if seq is not None and seq.prompt_logprobs is not None:
            entries = part.entries[: seq.prompt_len - part.first]
            seq.prompt_logprobs[part.first : part.first + len(entries)] = entries
