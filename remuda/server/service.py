"""What the handlers of all endpoints share: the engine, the tokenizer, the model's limits and the way in."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from remuda.config.engine import EngineConfig
from remuda.engine.client import AsyncEngine
from remuda.engine.generation import Generation
from remuda.engine.input import InputProcessor
from remuda.engine.output import OutputProcessor
from remuda.protocol.errors import InvalidRequest, NotFound
from remuda.protocol.request import EngineRequest
from remuda.protocol.sampling import SamplingParams
from remuda.server.answer import AnswerFormat
from remuda.server.config import ServerConfig
from remuda.server.protocol import GenerationRequest
from remuda.server.sampling import model_defaults
from remuda.text.prompt import Prompt, Prompter
from remuda.text.tokenizer import Tokenizer

_INLINE_CHARS = 16_384  # longer texts are tokenized off the event loop
_MAX_IMAGE_BYTES = 512 << 20  # of one request, as the engine receives them: every sequence brings its own
T = TypeVar("T")


class Service:
    def __init__(self, config: ServerConfig, engine_config: EngineConfig, engine: AsyncEngine, tokenizer: Tokenizer):
        self.config = config
        self.model = engine_config.model
        self.max_model_len = engine_config.scheduler.max_model_len
        self.engine = engine
        self.tokenizer = tokenizer
        self.defaults = model_defaults(self.model.generation_defaults, config.generation_config)
        self._input_processor = InputProcessor(self.model, tokenizer, self.max_model_len)
        self.prompter = Prompter(self.model, tokenizer, config.chat_template)
        self.answers = AnswerFormat(config, tokenizer, self.prompter.template_source)
        self.draining = False  # open requests finish, new ones are refused
        self._has_priorities = engine_config.scheduler.policy == "priority"
        self._ids = itertools.count()
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="preprocess")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def check_model(self, name: str | None) -> str:
        """The name that the answer carries. Raises NotFound for a model that is not served."""
        if name is None:
            return self.config.names[0]
        if name not in self.config.names:
            served = ", ".join(self.config.names)
            raise NotFound(
                f"the model {name!r} does not exist; served: {served}", param="model", code="model_not_found"
            )
        return name

    async def off_loop(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run something slow on one of a few threads, so that other requests' tokens keep flowing."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        """Token ids of every text. Raises InvalidRequest, before any work, for one that cannot fit the context."""
        longest = self.tokenizer.longest_token
        if longest is not None and any(len(text) > longest * self.max_model_len for text in texts):
            raise InvalidRequest(
                f"this model's context is {self.max_model_len} tokens; the text is far longer",
                param="prompt",
                code="context_length_exceeded",
            )
        if sum(map(len, texts)) <= _INLINE_CHARS:
            return [self.tokenizer.encode(text, add_special_tokens=add_special_tokens) for text in texts]
        return await self.off_loop(lambda: self.tokenizer.encode_all(texts, add_special_tokens=add_special_tokens))

    def start(self, prompts: Sequence[Prompt], sampling: SamplingParams, request: GenerationRequest) -> Generation:
        """Hand all prompts to the engine. Sequence i of prompt p has index p * n + i."""
        if request.priority and not self._has_priorities:
            raise InvalidRequest("priority needs a server with --scheduling-policy priority", param="priority")
        self.engine.check_room(len(prompts) * sampling.n)
        if sampling.n * sum(len(image.tiles) for prompt in prompts for image in prompt.images) > _MAX_IMAGE_BYTES:
            raise InvalidRequest("n copies of these images are too much: ask for fewer at a time", param="n")
        sequences: list[EngineRequest] = []
        for prompt in prompts:
            sequences += self._input_processor.requests(
                f"{next(self._ids):x}",
                prompt.token_ids,
                sampling,
                images=prompt.images,
                priority=request.priority or 0,
                cache_salt=request.cache_salt or "",
            )
        processors = [OutputProcessor(self.tokenizer, s.sampling, index=i) for i, s in enumerate(sequences)]
        return self.engine.submit(sequences, processors, stream=bool(request.stream))
