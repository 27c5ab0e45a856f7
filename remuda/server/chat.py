"""POST /v1/chat/completions."""

from __future__ import annotations

import time

import msgspec

from remuda.engine.client import Generation
from remuda.engine.output import OutputProcessor
from remuda.protocol.errors import InvalidRequest
from remuda.server.http import Exchange
from remuda.server.logprobs import TokenNames, chat_logprobs, prompt_logprobs
from remuda.server.messages import chat_prompt
from remuda.server.protocol import ChatChoice, ChatMessage, ChatRequest, ChatResponse, check_supported
from remuda.server.sampling import sampling_params
from remuda.server.service import Service, usage
from remuda.server.stream import ChunkFormat, stream_events, to_json
from remuda.text.prompt import Prompt

_decoder = msgspec.json.Decoder(ChatRequest)


async def chat_completions(service: Service, exchange: Exchange) -> None:
    request = await exchange.json(_decoder, service.config.max_body_bytes)
    model = service.check_model(request.model)
    check_supported(request)
    _check(request)
    prompt = await chat_prompt(service, request)
    call = Call(service, request, prompt, f"chatcmpl-{request.request_id or exchange.request_id}", model)
    generation = call.start()
    if request.stream:
        await call.stream(exchange, generation)
        return
    watch = exchange.on_disconnect(generation.close)
    try:
        await generation.completed()
    finally:
        watch.cancel()
        generation.close()
    await exchange.respond(to_json(call.response(generation)))


class Call:
    """One request on its way: what was asked, and how its answer is written."""

    def __init__(self, service: Service, request: ChatRequest, prompt: Prompt, id_: str, model: str) -> None:
        self.service = service
        self.request = request
        self.prompts = [prompt]
        self.id = id_
        self.model = model
        self.created = int(time.time())
        self.names = TokenNames(service.tokenizer, bool(request.return_tokens_as_token_ids))

    def start(self) -> Generation:
        request = self.request
        max_tokens = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
        logprobs = (request.top_logprobs or 0) if request.logprobs else None
        sampling = sampling_params(request, self.service.defaults, max_tokens=max_tokens, logprobs=logprobs)
        return self.service.start(self.prompts, sampling, request)

    def response(self, generation: Generation) -> ChatResponse:
        response = ChatResponse(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=[self._choice(processor) for processor in generation.processors],
            usage=usage(self.prompts, generation.processors),
        )
        if self.request.prompt_logprobs is not None:
            entries = generation.processors[0].prompt_logprobs or []
            response.prompt_logprobs = prompt_logprobs(self.names, entries)
        if self.request.return_token_ids:
            response.prompt_token_ids = self.prompts[0].token_ids
        return response

    async def stream(self, exchange: Exchange, generation: Generation) -> None:
        chunks = ChunkFormat(
            object_="chat.completion.chunk", id_=self.id, created=self.created, model=self.model, chat=True
        )
        request = self.request
        options = request.stream_options
        running_usage = bool(options and options.continuous_usage_stats)
        decorated = bool(request.logprobs or request.return_token_ids or running_usage)
        prompt_fields = {"prompt_token_ids": self.prompts[0].token_ids} if request.return_token_ids else {}
        first = b"".join([chunks.role(i, prompt_fields if i == 0 else {}) for i in range(len(generation.processors))])

        def render(processor: OutputProcessor) -> bytes:
            delta = processor.take()
            if not (decorated or processor.finished):
                return chunks.text(processor.index, delta.text) if delta.text else b""
            return chunks.full(
                processor.index,
                delta.text,
                logprobs=None if delta.logprobs is None else chat_logprobs(self.names, delta.logprobs, self._top),
                processor=processor,
                extra={"token_ids": delta.token_ids} if request.return_token_ids else {},
                usage=usage(self.prompts, generation.processors) if running_usage else None,
            )

        def last() -> bytes:
            return (
                chunks.usage(usage(self.prompts, generation.processors)) if options and options.include_usage else b""
            )

        await stream_events(exchange, generation, first=first, render=render, last=last)

    @property
    def _top(self) -> int:
        return self.request.top_logprobs or 0

    def _choice(self, processor: OutputProcessor) -> ChatChoice:
        delta = processor.take()
        choice = ChatChoice(
            index=processor.index,
            message=assistant_message(delta.text),
            logprobs=None if delta.logprobs is None else chat_logprobs(self.names, delta.logprobs, self._top),
            finish_reason=processor.finish_reason,
            stop_reason=processor.stop_reason,
        )
        if self.request.return_token_ids:
            choice.token_ids = delta.token_ids
        return choice


def assistant_message(text: str) -> ChatMessage:
    """The model's text as a message. Tool-call and reasoning parsers belong here: they turn text into fields."""
    return ChatMessage("assistant", text)


def _check(request: ChatRequest) -> None:
    if request.tool_choice not in (None, "auto", "none"):
        raise InvalidRequest(
            "tool_choice can only be 'auto' or 'none': the model cannot be forced to call a tool",
            param="tool_choice",
            code="unsupported",
        )
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    if request.stream and request.prompt_logprobs is not None:
        raise InvalidRequest("prompt_logprobs cannot be streamed", param="prompt_logprobs")
