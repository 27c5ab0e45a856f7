"""One generation request on its way through the server, whatever its API."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

import msgspec

from remuda.engine.generation import Generation
from remuda.engine.output import OutputProcessor
from remuda.protocol.sampling import SamplingParams
from remuda.server.http import Exchange
from remuda.server.logprobs import TokenNames
from remuda.server.protocol import GenerationRequest, PromptTokensDetails, Usage
from remuda.server.service import Service
from remuda.server.stream import ChunkFormat, stream_events, to_json
from remuda.text.prompt import Prompt

R = TypeVar("R", bound=GenerationRequest)


class Call(ABC, Generic[R]):
    """What was asked, and how its answer is written. Sequence i of prompt p has index p * n + i."""

    id_prefix: str
    chunk_object: str
    is_chat: bool

    def __init__(self, service: Service, exchange: Exchange, request: R, prompts: Sequence[Prompt], model: str) -> None:
        self.service = service
        self.request = request
        self.prompts = prompts
        self.names = TokenNames(service.tokenizer, bool(request.return_tokens_as_token_ids))
        self.n = request.n or 1
        self.id = f"{self.id_prefix}-{request.request_id or exchange.request_id}"
        self.model = model
        self.created = int(time.time())
        options = request.stream_options
        self._final_usage = bool(options and options.include_usage)
        self._running_usage = bool(options and options.continuous_usage_stats)

    @abstractmethod
    def sampling(self) -> SamplingParams:
        """What the request asks of the sampler. Raises InvalidRequest."""

    @abstractmethod
    def response(self, generation: Generation) -> msgspec.Struct:
        """The whole answer, when every sequence has ended."""

    @abstractmethod
    def first_chunk(self, chunks: ChunkFormat, sequences: int) -> bytes:
        """What a stream begins with, before any text."""

    @abstractmethod
    def chunk(self, chunks: ChunkFormat, processor: OutputProcessor, usage: Usage | None) -> bytes:
        """The next piece of one sequence (possibly nothing)."""

    def usage(self, generation: Generation) -> Usage:
        """Tokens so far. Prompt tokens count once per prompt, however many sequences it has."""
        processors = generation.processors
        prompt_tokens = sum(len(prompt.token_ids) for prompt in self.prompts)
        completion_tokens = sum(len(processor.token_ids) for processor in processors)
        cached = sum(processors[p * self.n].cached_tokens for p in range(len(self.prompts)))
        return Usage(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens, PromptTokensDetails(cached))

    async def answer(self, exchange: Exchange) -> None:
        """Run it. A client that disconnects aborts it."""
        generation = self.service.start(self.prompts, self.sampling(), self.request)
        if self.request.stream:
            await self._stream(exchange, generation)
            return
        watch = exchange.on_disconnect(generation.close)
        try:
            await generation.completed()
        finally:
            watch.cancel()
            generation.close()
        await exchange.respond(to_json(self.response(generation)))

    async def _stream(self, exchange: Exchange, generation: Generation) -> None:
        chunks = ChunkFormat(
            object_=self.chunk_object, id_=self.id, created=self.created, model=self.model, chat=self.is_chat
        )

        await stream_events(
            exchange,
            generation,
            first=self.first_chunk(chunks, len(generation.processors)),
            render=lambda processor: self.chunk(
                chunks, processor, self.usage(generation) if self._running_usage else None
            ),
            last=lambda: chunks.usage(self.usage(generation)) if self._final_usage else b"",
        )
