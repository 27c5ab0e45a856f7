"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from remuda.engine.generation import Generation
from remuda.engine.output import Delta, OutputProcessor
from remuda.protocol.errors import InvalidRequest
from remuda.protocol.request import TokenLogprobs
from remuda.protocol.sampling import SamplingParams
from remuda.server.call import Call
from remuda.server.http import Exchange
from remuda.server.logprobs import completion_logprobs, prompt_logprobs
from remuda.server.protocol import (
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    CompletionResponse,
    Usage,
    check_supported,
)
from remuda.server.sampling import sampling_params
from remuda.server.service import Service
from remuda.server.stream import ChunkFormat
from remuda.text.prompt import Prompt

MAX_PROMPTS = 1024
_decoder = msgspec.json.Decoder(CompletionRequest)


async def completions(service: Service, exchange: Exchange) -> None:
    request = await exchange.json(_decoder, service.config.max_body_bytes)
    model = service.check_model(request.model)
    check_supported(request)
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise InvalidRequest("best_of is not supported: use n", param="best_of", code="unsupported")
    prompts = await _prompts(service, request)
    await CompletionCall(service, exchange, request, prompts, model).answer(exchange)


class CompletionCall(Call[CompletionRequest]):
    id_prefix = "cmpl"
    chunk_object = "text_completion"
    is_chat = False

    def __init__(
        self, service: Service, exchange: Exchange, request: CompletionRequest, prompts: Sequence[Prompt], model: str
    ) -> None:
        super().__init__(service, exchange, request, prompts, model)
        # Scoring: nothing is to be generated, but the engine must generate one token to score the prompt.
        self.prompt_only = bool(request.echo) and request.max_tokens == 0
        self._decorated = request.logprobs is not None or bool(request.return_token_ids)
        self._offsets: dict[int, int] = {}  # per sequence: characters sent, once its first part is out

    def sampling(self) -> SamplingParams:
        request = self.request
        max_tokens = 16 if request.max_tokens is None else request.max_tokens
        sampling = sampling_params(
            request,
            self.service.defaults,
            max_tokens=1 if self.prompt_only else max_tokens,
            logprobs=request.logprobs,
        )
        if request.echo and request.logprobs is not None and sampling.prompt_logprobs is None:
            return msgspec.structs.replace(sampling, prompt_logprobs=request.logprobs)
        return sampling

    def response(self, generation: Generation) -> CompletionResponse:
        return CompletionResponse(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=[self._choice(processor) for processor in generation.processors],
            usage=self.usage(generation),
        )

    def usage(self, generation: Generation) -> Usage:
        counted = super().usage(generation)
        if self.prompt_only:
            counted.completion_tokens, counted.total_tokens = 0, counted.prompt_tokens
        return counted

    def first_chunk(self, chunks: ChunkFormat, sequences: int) -> bytes:
        return b""

    def chunk(self, chunks: ChunkFormat, processor: OutputProcessor, usage: Usage | None) -> bytes:
        delta = processor.take()
        is_first = processor.index not in self._offsets
        if not (self._decorated or processor.finished or usage or (is_first and self.request.echo)):
            return chunks.text(processor.index, delta.text) if delta.text else b""
        text, logprobs = self._text_and_logprobs(processor, delta)
        extra = self._token_id_fields(processor, delta.token_ids, with_prompt=is_first)
        return chunks.full(processor, text, logprobs=logprobs, extra=extra, usage=usage)

    def _choice(self, processor: OutputProcessor) -> CompletionChoice:
        delta = processor.take()
        text, logprobs = self._text_and_logprobs(processor, delta)
        choice = CompletionChoice(
            index=processor.index,
            text=text,
            logprobs=logprobs,
            finish_reason="length" if self.prompt_only else processor.finish_reason,
            stop_reason=None if self.prompt_only else processor.stop_reason,
        )
        if self.request.prompt_logprobs is not None:
            choice.prompt_logprobs = prompt_logprobs(self.names, processor.prompt_logprobs or [])
        if self.request.return_token_ids:
            choice.token_ids = [] if self.prompt_only else delta.token_ids
            choice.prompt_token_ids = self._prompt_of(processor).token_ids
        return choice

    def _text_and_logprobs(self, processor: OutputProcessor, delta: Delta) -> tuple[str, CompletionLogprobs | None]:
        """What this part of a sequence shows; with echo, its first part begins with the prompt."""
        text, token_ids = delta.text, delta.token_ids
        entries: list[TokenLogprobs | None] = list(delta.logprobs or [])
        if self.prompt_only:
            text, token_ids, entries = "", [], []
        offset = self._offsets.get(processor.index)
        if offset is None and self.request.echo:
            prompt = self._prompt_of(processor)
            shown = prompt.text if prompt.text is not None else self.service.tokenizer.decode(prompt.token_ids)
            text = shown + text
            token_ids = prompt.token_ids + token_ids
            entries = [*(processor.prompt_logprobs or []), *entries]
        logprobs = None
        if self.request.logprobs is not None:
            logprobs = completion_logprobs(self.names, entries, token_ids, self.request.logprobs, offset or 0)
        self._offsets[processor.index] = (offset or 0) + len(text)
        return text, logprobs

    def _token_id_fields(
        self, processor: OutputProcessor, token_ids: list[int], *, with_prompt: bool
    ) -> dict[str, object]:
        if not self.request.return_token_ids:
            return {}
        fields: dict[str, object] = {"token_ids": token_ids}
        return {"prompt_token_ids": self._prompt_of(processor).token_ids, **fields} if with_prompt else fields

    def _prompt_of(self, processor: OutputProcessor) -> Prompt:
        return self.prompts[processor.index // self.n]


def _each_prompt(prompt: str | list[str | int | list[int]] | None) -> list[str | list[int]]:
    """The four forms of `prompt` as a list of texts and token-id lists."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequest("prompt is missing or empty", param="prompt")
    if all(isinstance(item, int) for item in prompt):
        return [prompt]  # type: ignore[list-item]
    if any(isinstance(item, int) for item in prompt):
        raise InvalidRequest("prompt must not mix token ids with texts or lists", param="prompt")
    if len(prompt) > MAX_PROMPTS:
        raise InvalidRequest(f"at most {MAX_PROMPTS} prompts in one request", param="prompt")
    return prompt  # type: ignore[return-value]


async def _prompts(service: Service, request: CompletionRequest) -> list[Prompt]:
    given = _each_prompt(request.prompt)
    texts = [prompt for prompt in given if isinstance(prompt, str)]
    encoded = iter(await service.encode(texts, add_special_tokens=request.add_special_tokens is not False))
    return [Prompt(next(encoded), p) if isinstance(p, str) else Prompt(p) for p in given]
