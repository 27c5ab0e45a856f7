"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from remuda.engine.generation import Generation
from remuda.engine.output import Delta, OutputProcessor
from remuda.protocol.errors import InvalidRequest
from remuda.protocol.sampling import SamplingParams
from remuda.server.call import Call
from remuda.server.http import Exchange
from remuda.server.logprobs import chat_logprobs, prompt_logprobs
from remuda.server.messages import chat_prompt
from remuda.server.protocol import (
    AnswerDelta,
    ChatChoice,
    ChatLogprobs,
    ChatMessage,
    ChatRequest,
    ChatResponse,
    CompletionTokensDetails,
    Usage,
    check_supported,
)
from remuda.server.sampling import sampling_params
from remuda.server.service import Service
from remuda.server.stream import ChunkFormat
from remuda.server.tools import check_tools
from remuda.text.prompt import Prompt

_decoder = msgspec.json.Decoder(ChatRequest)


async def chat_completions(service: Service, exchange: Exchange) -> None:
    request = await exchange.json(_decoder, service.config.max_body_bytes)
    model = service.check_model(request.model)
    check_supported(request)
    _check(request)
    prompt = await chat_prompt(service, request)
    await ChatCall(service, exchange, request, [prompt], model).answer(exchange)


class ChatCall(Call[ChatRequest]):
    id_prefix = "chatcmpl"
    chunk_object = "chat.completion.chunk"
    is_chat = True

    def __init__(
        self, service: Service, exchange: Exchange, request: ChatRequest, prompts: Sequence[Prompt], model: str
    ) -> None:
        super().__init__(service, exchange, request, prompts, model)
        # One per sequence; None where an answer can only be text, which is then passed on unread.
        self._answers = service.answers.readers(request, prompts[0].text or "", self.n)

    def sampling(self) -> SamplingParams:
        request = self.request
        max_tokens = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
        logprobs = (request.top_logprobs or 0) if request.logprobs else None
        sampling = sampling_params(request, self.service.defaults, max_tokens=max_tokens, logprobs=logprobs)
        if self._answers is not None and self._answers[0].needs_special_tokens:
            return msgspec.structs.replace(sampling, skip_special_tokens=False)
        return sampling

    def response(self, generation: Generation) -> ChatResponse:
        response = ChatResponse(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=[self._choice(processor) for processor in generation.processors],
            usage=self.usage(generation),
        )
        if self.request.prompt_logprobs is not None:
            entries = generation.processors[0].prompt_logprobs or []
            response.prompt_logprobs = prompt_logprobs(self.names, entries)
        if self.request.return_token_ids:
            response.prompt_token_ids = self.prompts[0].token_ids
        return response

    def first_chunk(self, chunks: ChunkFormat, sequences: int) -> bytes:
        prompt = {"prompt_token_ids": self.prompts[0].token_ids} if self.request.return_token_ids else {}
        return b"".join([chunks.role(i, prompt if i == 0 else {}) for i in range(sequences)])

    def chunk(self, chunks: ChunkFormat, processor: OutputProcessor, usage: Usage | None) -> bytes:
        delta = processor.take()
        if self._answers is not None:
            return self._read_chunk(chunks, processor, delta, usage)
        if not (self.request.logprobs or self.request.return_token_ids or processor.finished or usage):
            return chunks.text(processor.index, delta.text) if delta.text else b""
        extra = {"token_ids": delta.token_ids} if self.request.return_token_ids else {}
        return chunks.full(processor, delta.text, logprobs=self._logprobs(delta), extra=extra, usage=usage)

    def _read_chunk(self, chunks: ChunkFormat, processor: OutputProcessor, delta: Delta, usage: Usage | None) -> bytes:
        """The next piece of an answer that may hold calls or reasoning."""
        assert self._answers is not None
        answer = self._answers[processor.index]
        read = answer.read(delta.text, final=processor.finished)
        if read is None and not (self.request.logprobs or self.request.return_token_ids or processor.finished or usage):
            return b""
        extra = {"token_ids": delta.token_ids} if self.request.return_token_ids else {}
        logprobs, finish_reason = self._logprobs(delta), answer.finish_reason(processor.finish_reason)
        if finish_reason is None or read is None or not read.tool_calls:
            return chunks.delta(processor, read or AnswerDelta(), finish_reason, logprobs, extra, usage)
        # As OpenAI does: a client takes a call as complete when a chunk comes that adds nothing to it.
        return chunks.delta(processor, read, None, logprobs, extra, usage) + chunks.delta(
            processor, AnswerDelta(), finish_reason, None, {}, usage
        )

    def usage(self, generation: Generation) -> Usage:
        counted = super().usage(generation)
        if self._answers is not None and self.service.answers.reasoning is not None:
            reasoning = sum(
                answer.reasoning_tokens(processor.token_ids)
                for answer, processor in zip(self._answers, generation.processors, strict=True)
            )
            counted.completion_tokens_details = CompletionTokensDetails(reasoning)
        return counted

    def _choice(self, processor: OutputProcessor) -> ChatChoice:
        delta = processor.take()
        answer = self._answers[processor.index] if self._answers is not None else None
        message = answer.message(delta.text) if answer else ChatMessage("assistant", delta.text)
        choice = ChatChoice(
            index=processor.index,
            message=message,
            logprobs=self._logprobs(delta),
            finish_reason=answer.finish_reason(processor.finish_reason) if answer else processor.finish_reason,
            stop_reason=processor.stop_reason,
        )
        if self.request.return_token_ids:
            choice.token_ids = delta.token_ids
        return choice

    def _logprobs(self, delta: Delta) -> ChatLogprobs | None:
        if delta.logprobs is None:
            return None
        return chat_logprobs(self.names, delta.logprobs, self.request.top_logprobs or 0)


def _check(request: ChatRequest) -> None:
    check_tools(request.tools)
    if request.tool_choice not in (None, "auto", "none"):
        raise InvalidRequest(
            "tool_choice can only be 'auto' or 'none': the model cannot be forced to call a tool",
            param="tool_choice",
            code="unsupported",
        )
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
