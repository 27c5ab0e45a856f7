"""Ranks without tensors: they follow protocol/step.py to the letter and check everything that the engine tells them.

The KV cache is simulated cell by cell. A cell holds the digest of the whole history up to its position, because that is
what the hidden state behind a real key depends on, so a stale, foreign or overwritten page shows at once.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from remuda.config.engine import CacheConfig, EngineConfig, ParallelConfig, SchedulerConfig
from remuda.config.model import LayerConfig, ModelConfig
from remuda.engine.core import EngineCore
from remuda.engine.drafting import Drafter
from remuda.engine.ports import Executor, StartReport
from remuda.engine.sequence import Sequence
from remuda.kv.specs import AnyAttention, ChunkedLocal, FullAttention, SlidingWindow
from remuda.protocol.progress import PhaseProgress
from remuda.protocol.request import EngineRequest, FinishReason, ImageInput, RequestOutput, TokenLogprobs
from remuda.protocol.sampling import SamplingParams
from remuda.protocol.step import (
    MemoryReport,
    NewSequence,
    PromptLogprobs,
    StepPlan,
    StepResult,
)

VOCAB = 97
EOS = 2


def tiny_model(layers: str = "CCCF", chunk: int = 12, vocab_size: int = VOCAB, window: int = 7) -> ModelConfig:
    """A model by the attention kinds of its layers: C chunked, F full, W sliding window."""
    kinds: dict[str, AnyAttention] = {"F": FullAttention(), "C": ChunkedLocal(chunk), "W": SlidingWindow(window)}
    return ModelConfig(
        path="", architecture="Fake", dtype="float32", checkpoint_dtype="float32", hidden_size=64, num_heads=4,
        num_kv_heads=2, head_dim=16, intermediate_size=128, vocab_size=vocab_size, max_position_embeddings=1 << 20,
        rms_norm_eps=1e-5, rope_theta=1e4, rope_scaling=None, rope_interleaved=True,
        layers=tuple(LayerConfig(kinds[kind], True, False, False, False) for kind in layers),
        temperature_floor=0.0, temperature_scale=0.0,
        tie_word_embeddings=False, moe=None, vision=None, image_tokens=None, quant=None, bos_token_id=None,
        eos_token_ids=(EOS,),
    )  # fmt: skip


def engine_config(
    model: ModelConfig | None = None, *, block_size: int = 4, stages: int = 1, caching: bool = True, **scheduler: object
) -> EngineConfig:
    model = model or tiny_model()
    return EngineConfig(
        model,
        ParallelConfig(pipeline_parallel_size=stages, layer_partition=(1,) * stages),
        CacheConfig(block_size=block_size, enable_prefix_caching=caching),
        SchedulerConfig(**{"max_model_len": 256, "max_num_seqs": 8, "max_num_batched_tokens": 32} | scheduler),  # type: ignore[arg-type]
    )


def request(
    name: str,
    prompt: list[int],
    *,
    seed: int = 0,
    priority: int = 0,
    salt: str = "",
    images: list[ImageInput] | None = None,
    **sampling: object,
) -> EngineRequest:
    params = SamplingParams(**{"max_tokens": 8, "eos_token_ids": [EOS], "seed": seed} | sampling)  # type: ignore[arg-type]
    return EngineRequest(name, prompt, params, 0.0, priority, salt, images or [])


# ----------------------------------------------------------------------------------------------- the simulated model


def next_history(history: int, token: int, position: int, images: list[ImageInput]) -> int:
    """What the model's state at `position` depends on: everything before it, the token and the image there."""
    digest = next((i.digest for i in images if i.start <= position < i.start + i.length), "")
    return hash((history, token, *digest.encode()))


def sample(history: int, sampling: SamplingParams, outputs: int) -> int:
    """A pseudo-random token that is a function of the seed and of the whole history."""
    token = hash((sampling.seed, history)) % VOCAB
    if outputs < sampling.min_tokens:
        while token in sampling.ending_token_ids:
            token = (token + 1) % VOCAB
    return token


def logprobs_of(token: int) -> TokenLogprobs:
    return TokenLogprobs([token], [-(token + 1) / 7], 1 + token % 5)


def brute_force(req: EngineRequest, longest: int) -> tuple[list[int], FinishReason]:
    """What the request must produce, whatever happens around it."""
    sampling, ids = req.sampling, list(req.prompt_token_ids)
    history = 0
    for position, token in enumerate(ids):
        history = next_history(history, token, position, req.images)
    outputs: list[int] = []
    while True:
        token = sample(history, sampling, len(outputs))
        history = next_history(history, token, len(ids), req.images)
        ids.append(token)
        outputs.append(token)
        if token in sampling.ending_token_ids and len(outputs) > sampling.min_tokens:
            return outputs, FinishReason.STOP
        if len(outputs) == sampling.max_tokens or len(ids) >= longest:
            return outputs, FinishReason.LENGTH


# ------------------------------------------------------------------------------------------------ the simulated ranks


@dataclass
class _Slot:
    token_ids: list[int]
    prompt_len: int
    computed: int
    pages: list[list[int]]
    sampling: SamplingParams
    images: list[ImageInput]
    histories: list[int] = field(default_factory=list)  # of every computed position
    rejected: int = 0  # of the drafts that ran last, as long as the engine has not said so


class FakeRanks:
    """An executor that runs plans at once and hands results out later: at most `lag` steps, at the whim of `rng`."""

    def __init__(
        self, config: EngineConfig, pages: int, *, rng: random.Random | None = None, immediate: bool = False
    ) -> None:
        self.groups = config.model.kv_groups
        self.block_size = config.cache.block_size
        self.limits = config.scheduler
        self.pages = pages
        self.slots: dict[int, _Slot] = {}
        self.plans: list[StepPlan] = []
        self.poison: set[int] = set()  # seeds whose logits are not finite at their third output
        self.down = False
        self._cells: dict[tuple[int, int], int] = {}  # (page, offset) -> history digest
        self._results: list[StepResult] = []
        self._rng = rng
        self._pipe = () if immediate else os.pipe()
        if self._pipe:
            os.write(self._pipe[1], b"!")  # always readable: poll() decides what has arrived

    def start(self, progress: Callable[[PhaseProgress], None]) -> StartReport:
        progress(PhaseProgress(0, "weights", 1, 1))
        at_once = None if self._pipe else 1
        return StartReport(self.pages, [MemoryReport(0, 0, 0, 0, 1, [0], [])], plans_in_flight=at_once)

    def filenos(self) -> list[int]:
        return [self._pipe[0]] if self._pipe else []

    def shutdown(self) -> None:
        self.down = True
        for descriptor in self._pipe:
            os.close(descriptor)
        self._pipe = ()

    def poll(self, block: bool = False) -> list[StepResult]:
        count = len(self._results) if self._rng is None else self._rng.randint(0, len(self._results))
        arrived, self._results = self._results[:count], self._results[count:]
        return arrived

    def submit(self, plan: StepPlan) -> None:
        assert plan.step == (self.plans[-1].step + 1 if self.plans else 0)
        self.plans.append(plan)
        for slot in plan.released:
            del self.slots[slot]
        for new in plan.new:
            self._enter(new)
        for grant in plan.grants:
            for pages, more in zip(self.slots[grant.slot].pages, grant.pages, strict=True):
                pages.extend(more)
        for slot, count in plan.rejected:
            assert self.slots[slot].rejected == count > 0
            self.slots[slot].rejected = 0
        self._check_plan(plan)
        self._results.append(self._run(plan))

    def _enter(self, new: NewSequence) -> None:
        assert new.slot not in self.slots and 0 <= new.slot < self.limits.max_num_seqs
        assert new.computed < len(new.token_ids)
        slot = _Slot(
            list(new.token_ids), new.prompt_len, new.computed, [list(p) for p in new.pages], new.sampling, new.images
        )
        history = 0
        for position, token in enumerate(new.token_ids[: new.computed]):
            history = next_history(history, token, position, new.images)
            slot.histories.append(history)
        self.slots[new.slot] = slot

    def _check_plan(self, plan: StepPlan) -> None:
        assert plan.slots and len(set(plan.slots)) == len(plan.slots) == len(plan.counts)
        assert len(self.slots) <= self.limits.max_num_seqs
        assert sum(plan.counts) <= self.limits.max_num_batched_tokens
        assert not plan.drafts or any(plan.drafts), "drafts of nobody"
        for slot, count, drafts in rows_of(plan):
            state = self.slots[slot]
            assert not state.rejected, "the engine has not seen yet what became of its drafts"
            assert 0 < count <= len(state.token_ids) - state.computed + len(drafts)
            assert not drafts or count == len(state.token_ids) - state.computed + len(drafts)
            self._check_context(state)

    def _check_context(self, state: _Slot) -> None:
        """Every position that the next token reads must be in its page, written with the right history."""
        for group, pages in zip(self.groups, state.pages, strict=True):
            for position in range(group.spec.first_visible(state.computed), state.computed):
                page = pages[position // self.block_size]
                assert page != 0, f"position {position} was released too early"
                found = self._cells.get((page, position % self.block_size))
                assert found == state.histories[position], f"page {page} holds something else at position {position}"

    def _run(self, plan: StepPlan) -> StepResult:
        tokens: list[int] = []
        logprobs: list[TokenLogprobs | None] = []
        prompt_parts: list[PromptLogprobs] = []
        written: set[tuple[int, int]] = set()
        runs: list[int] = []
        for slot, count, drafts in rows_of(plan):
            state, start = self.slots[slot], self.slots[slot].computed
            known = len(state.token_ids)
            state.token_ids += drafts
            self._write(state, count, written)
            if state.sampling.prompt_logprobs is not None and start < state.prompt_len - 1:
                predicted = state.token_ids[start + 1 : min(start + count + 1, state.prompt_len)]
                prompt_parts.append(PromptLogprobs(slot, start + 1, [logprobs_of(token) for token in predicted]))
            if state.computed == len(state.token_ids):
                run = self._verify(state, known, drafts)
                tokens += run
                runs.append(len(run))
                wanted = state.sampling.logprobs is not None
                logprobs += [logprobs_of(token) if wanted else None for token in run]
        return StepResult(
            plan.step, tokens, logprobs if any(logprobs) else [], prompt_parts, runs if plan.drafts else []
        )

    def _verify(self, state: _Slot, known: int, drafts: list[int]) -> list[int]:
        """Sample after the last known token and on through the drafts as long as they are right; forget the others."""
        run: list[int] = []
        while True:
            place = known + len(run)
            token = sample(state.histories[place - 1], state.sampling, place - state.prompt_len)
            poisoned = state.sampling.seed in self.poison and place - state.prompt_len == 2
            run.append(-1 if poisoned else token)
            if poisoned or len(run) > len(drafts) or drafts[len(run) - 1] != token:
                break
        state.rejected = len(drafts) - (len(run) - 1)
        state.token_ids[place:] = [token]
        state.computed = place
        del state.histories[place:]
        return run

    def _write(self, state: _Slot, count: int, written: set[tuple[int, int]]) -> None:
        for position in range(state.computed, state.computed + count):
            history = state.histories[-1] if state.histories else 0
            state.histories.append(next_history(history, state.token_ids[position], position, state.images))
            for pages in state.pages:
                cell = (pages[position // self.block_size], position % self.block_size)
                assert 0 < cell[0] < self.pages, f"position {position} has no page"
                assert cell not in written, f"page {cell[0]} is written twice in one step"
                written.add(cell)
                self._cells[cell] = state.histories[-1]
        state.computed += count


def rows_of(plan: StepPlan) -> list[tuple[int, int, list[int]]]:
    """(slot, count, drafts) of each row."""
    return list(zip(plan.slots, plan.counts, plan.drafts or [[] for _ in plan.slots], strict=True))


class CountingRanks:
    """Ranks that only count: fast, for tests of what the scheduler does rather than of what the pages hold."""

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self.plans: list[StepPlan] = []
        self._uncomputed: dict[int, int] = {}  # by slot
        self._results: list[StepResult] = []

    def start(self, progress: Callable[[PhaseProgress], None]) -> StartReport:
        return StartReport(self.pages, [], plans_in_flight=None if self.filenos() else 1)

    def filenos(self) -> list[int]:
        return []

    def shutdown(self) -> None:
        return

    def poll(self, block: bool = False) -> list[StepResult]:
        arrived, self._results = self._results, []
        return arrived

    def submit(self, plan: StepPlan) -> None:
        self.plans.append(plan)
        self._results.append(StepResult(plan.step, [EOS + 1] * len(self.sampling_rows(plan))))

    def sampling_rows(self, plan: StepPlan) -> list[int]:
        """Run a plan; the slots that sample."""
        for new in plan.new:
            self._uncomputed[new.slot] = len(new.token_ids) - new.computed
        sampling = []
        for slot, count in zip(plan.slots, plan.counts, strict=True):
            self._uncomputed[slot] -= count
            if self._uncomputed[slot] == 0:
                self._uncomputed[slot] = 1
                sampling.append(slot)
        return sampling


# ------------------------------------------------------------------------------------------------------------- helpers


class FakeDrafter:
    """Knows what will come, and proposes that, something else, or both in one."""

    def __init__(self, rng: random.Random, most: int = 5) -> None:
        self._future: dict[str, list[int]] = {}
        self._rng = rng
        self._most = most
        self.proposed = 0

    def learn(self, requests: list[EngineRequest], longest: int) -> None:
        self._future = {r.request_id: [*r.prompt_token_ids, *brute_force(r, longest)[0]] for r in requests}

    def propose(self, seq: Sequence, most: int) -> list[int]:
        assert most > 0 and not seq.unseen
        future = self._future[seq.request_id]
        assert future[: len(seq.token_ids)] == seq.token_ids
        count = self._rng.randint(0, self._most)
        drafts = future[len(seq.token_ids) :][:count]
        drafts += [self._rng.randrange(VOCAB) for _ in range(count - len(drafts))]
        if drafts and self._rng.random() < 0.5:
            wrong = self._rng.randrange(len(drafts))
            drafts[wrong] = (drafts[wrong] + 1) % VOCAB
        self.proposed += len(drafts)
        return drafts


def core_over(config: EngineConfig, ranks: Executor, drafter: Drafter | None = None) -> EngineCore:
    """An engine core over ranks that it starts."""
    return EngineCore(config, ranks, ranks.start(lambda _: None), drafter)


class Outcome:
    """What a client has received for one request."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.final: RequestOutput | None = None
        self.first: RequestOutput | None = None

    def take(self, output: RequestOutput) -> None:
        assert self.final is None, "output after the end"
        self.first = self.first or output
        self.token_ids += output.token_ids
        self.logprobs += output.logprobs or []
        if output.finish_reason is not None:
            self.final = output


def run_step(core: EngineCore, outcomes: dict[str, Outcome]) -> None:
    """One engine step with every invariant checked after it."""
    result = core.step(block=False)
    core.scheduler.check()
    for output in result.outputs if result else ():
        outcomes.setdefault(output.request_id, Outcome()).take(output)


def run_to_end(core: EngineCore, requests: list[EngineRequest], max_steps: int = 20_000) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    for req in requests:
        core.add(req)
    for _ in range(max_steps):
        if not core.has_work:
            return outcomes
        run_step(core, outcomes)
    raise AssertionError("the engine does not come to an end")
