"""The Python API: `LLM(model).generate(prompts)`, with vLLM's names. The engine core runs in this process.

from remuda import LLM, SamplingParams

with LLM("path/to/checkpoint", tensor_parallel_size=2) as llm:
    for result in llm.generate(["Once upon a time"], SamplingParams(max_tokens=32)):
        print(result.outputs[0].text)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from tqdm import tqdm

from remuda.config.arguments import OFFLINE_FLAGS
from remuda.config.parser import options_from_keywords
from remuda.engine.input import InputProcessor
from remuda.engine.output import OutputProcessor
from remuda.launch.local import LocalReplica
from remuda.launch.resolve import engine_config
from remuda.protocol.errors import InvalidRequest
from remuda.protocol.request import EngineStats, TokenLogprobs
from remuda.protocol.sampling import SamplingParams
from remuda.text.prompt import Prompter
from remuda.text.tokenizer import Tokenizer

T = TypeVar("T")
Prompt = str | Sequence[int] | Mapping[str, Any]
"""A text, token ids, or {"prompt": text} / {"prompt_token_ids": ids}."""


@dataclass(frozen=True)
class Logprob:
    """One candidate at one position; rank 1 is the most likely token (0: not known)."""

    logprob: float
    rank: int
    decoded_token: str


PositionLogprobs = dict[int, Logprob]


@dataclass(frozen=True)
class Completion:
    """One of the `n` answers to a prompt."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None
    stop_reason: int | str | None
    logprobs: list[PositionLogprobs] | None
    cumulative_logprob: float | None


@dataclass(frozen=True)
class RequestResult:
    """A prompt and its answers."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[Completion]
    prompt_logprobs: list[PositionLogprobs | None] | None
    num_cached_tokens: int
    finished: bool = True


@dataclass
class _Job:
    """A prompt while it runs: one processor per sequence."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    processors: list[OutputProcessor] = field(default_factory=list)
    open: int = 0


class LLM:
    """A model loaded for offline use. Ranks beyond the first run in processes of their own.

    Keyword arguments are the engine's flags with underscores (`remuda serve --help`). `close()`, or the end of a `with`
    block, ends every process that this started.
    """

    def __init__(self, model: str | None = None, *, chat_template: str | None = None, **engine_options: Any) -> None:
        options = options_from_keywords(OFFLINE_FLAGS, engine_options)
        world_size = options["tensor_parallel_size"] * options["pipeline_parallel_size"]
        if world_size == 1 and "distributed_executor_backend" not in engine_options:
            options["distributed_executor_backend"] = "inproc"
        self.config = engine_config(options | {"model": model})
        self._tokenizer = None
        if not options["skip_tokenizer_init"]:
            self._tokenizer = Tokenizer.from_dir(options["tokenizer"] or self.config.model.path)
        self._prompter = Prompter(self.config.model, self._tokenizer, chat_template) if self._tokenizer else None
        self._numbers = itertools.count()
        self._replica = LocalReplica(self.config)
        self._core = self._replica.core
        self._input_processor = InputProcessor(self.config.model, self._tokenizer, self.config.scheduler.max_model_len)

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises InvalidRequest with `skip_tokenizer_init`."""
        return _needs_tokenizer(self._tokenizer)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestResult]:
        """Answer every prompt; results in the prompts' order.

        Raises:
            InvalidRequest: a prompt or parameter that cannot be served (nothing has run then).
            ReplicaDied: a rank died on the way.
        """
        batch = _as_batch(prompts)
        params = _one_each(sampling_params, len(batch))
        ids = [self._token_ids(prompt) for prompt in batch]
        texts = [prompt if isinstance(prompt, str) else None for prompt in batch]
        return self._run(list(zip(texts, ids, [[]] * len(ids), strict=True)), params, priority, use_tqdm)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        add_generation_prompt: bool = True,
    ) -> list[RequestResult]:
        """Answer one conversation or several (OpenAI's message form; images as data: URLs)."""
        several = bool(messages) and not isinstance(messages[0], Mapping)
        conversations: list[Any] = list(messages) if several else [messages]
        prompter = _needs_tokenizer(self._prompter)
        prompts = [
            prompter.chat(conversation, add_generation_prompt=add_generation_prompt) for conversation in conversations
        ]
        rows = [(p.text, p.token_ids, list(p.images)) for p in prompts]
        return self._run(rows, _one_each(sampling_params, len(rows)), None, use_tqdm)

    def stats(self) -> EngineStats:
        """Counters since the start: pages in use, preemptions, prefix-cache hits, ..."""
        return self._core.stats()

    def close(self) -> None:
        """End every rank. Idempotent."""
        self._replica.stop()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(
        self, rows: list[tuple[str | None, list[int], list[Any]]], params: list[SamplingParams],
        priorities: Sequence[int] | None, use_tqdm: bool,
    ) -> list[RequestResult]:  # fmt: skip
        jobs: list[_Job] = []
        requests = []
        owner: dict[str, tuple[_Job, OutputProcessor]] = {}
        for (text, ids, images), sampling, priority in zip(rows, params, priorities or [0] * len(rows), strict=True):
            number = next(self._numbers)
            job = _Job(str(number), text, ids)
            if sampling.seed is None:
                sampling = msgspec.structs.replace(sampling, seed=self.config.seed + number)
            jobs.append(job)
            for index, request in enumerate(
                self._input_processor.requests(job.request_id, ids, sampling, images=images, priority=priority)
            ):
                processor = OutputProcessor(self._tokenizer, request.sampling, index=index)
                job.processors.append(processor)
                owner[request.request_id] = job, processor
                requests.append(request)
            job.open = len(job.processors)
        try:
            self._feed(requests, owner, jobs, use_tqdm)
        except BaseException:
            self._core.abort(list(owner))
            raise
        return [self._result(job) for job in jobs]

    def _feed(
        self, requests: Iterable[Any], owner: dict[str, tuple[_Job, OutputProcessor]], jobs: list[_Job], use_tqdm: bool
    ) -> None:
        """Keep the bounded queue of the engine full until every sequence has ended."""
        pending = iter(requests)
        left = len(owner)
        with tqdm(total=len(jobs), disable=not use_tqdm, desc="prompts", unit="prompt") as bar:
            while left:
                room = max(0, self.config.scheduler.max_waiting - self._core.stats().waiting)
                for request in itertools.islice(pending, room):
                    self._core.add(request)
                step = self._core.step(block=True)
                for output in step.outputs if step else ():
                    job, processor = owner[output.request_id]
                    if processor.push(output):
                        self._core.abort([output.request_id])
                    if processor.finished:
                        left -= 1
                        job.open -= 1
                        bar.update(job.open == 0)

    def _token_ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, Mapping):
            prompt = prompt["prompt_token_ids"] if "prompt_token_ids" in prompt else prompt.get("prompt", prompt)
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        ids: list[Any] = list(prompt) if isinstance(prompt, Sequence) else [prompt]
        if any(type(token) is not int for token in ids):
            raise InvalidRequest(f"a prompt is a text, a list of token ids, or a dict of either, not {prompt!r:.100}")
        return ids

    def _result(self, job: _Job) -> RequestResult:
        first = job.processors[0]
        for processor in job.processors:
            if processor.error:
                raise processor.error
        prompt_logprobs = None
        if first.prompt_logprobs is not None:
            prompt_logprobs = [None if entry is None else self._position(entry) for entry in first.prompt_logprobs]
        return RequestResult(
            job.request_id, job.prompt, job.prompt_token_ids, [self._completion(p) for p in job.processors],
            prompt_logprobs, first.cached_tokens,
        )  # fmt: skip

    def _completion(self, p: OutputProcessor) -> Completion:
        wanted = p.sampling.logprobs is not None
        return Completion(
            index=p.index, text=p.text(), token_ids=p.token_ids,
            finish_reason=p.finish_reason, stop_reason=p.stop_reason,
            logprobs=[self._position(position) for position in p.logprobs] if wanted else None,
            cumulative_logprob=sum(position.logprobs[0] for position in p.logprobs) if wanted else None,
        )  # fmt: skip

    def _position(self, entry: TokenLogprobs) -> PositionLogprobs:
        """The chosen token (with its true rank), then the most likely ones, ranked 1, 2, ..."""
        found: PositionLogprobs = {}
        ranks = itertools.chain([entry.rank], itertools.count(1))
        for token, value, rank in zip(entry.token_ids, entry.logprobs, ranks, strict=False):
            text = self._tokenizer.token_text(token) if self._tokenizer else ""
            found.setdefault(token, Logprob(value, rank, text))
        return found


def _needs_tokenizer(made: T | None) -> T:
    """What there is with a tokenizer only."""
    if made is None:
        raise InvalidRequest("with skip_tokenizer_init prompts are token ids: texts and chats need a tokenizer")
    return made


def _as_batch(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt (text, mapping, or a list of ints) is a batch of one."""
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    if not isinstance(prompts, Iterable):
        raise InvalidRequest(f"prompts must be a text or a list of prompts, not {prompts!r:.100}")
    batch: list[Any] = list(prompts)
    if batch and all(isinstance(item, int) for item in batch):
        return [batch]
    return batch


def _one_each(params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
    if params is None:
        params = SamplingParams()
    if isinstance(params, SamplingParams):
        params = [params] * count
    if not isinstance(params, (list, tuple)) or not all(isinstance(one, SamplingParams) for one in params):
        raise InvalidRequest(f"sampling_params must be SamplingParams or a list of them, not {params!r:.100}")
    if len(params) != count:
        raise InvalidRequest(f"{len(params)} sampling parameters for {count} prompts")
    for one in {id(one): one for one in params}.values():
        _check_types(one)
    return list(params)


def _check_types(params: SamplingParams) -> None:
    """A struct made in Python takes values of any type; what came over HTTP has been checked already."""
    try:
        msgspec.convert(msgspec.structs.asdict(params), SamplingParams)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"sampling_params: {error}") from None
