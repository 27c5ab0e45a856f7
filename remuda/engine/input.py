"""From a tokenized prompt and what the client asked to complete engine requests: checked, seeded, fanned out."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

import msgspec

from remuda.config.model import ModelConfig
from remuda.protocol.errors import InvalidRequest
from remuda.protocol.request import EngineRequest, ImageInput
from remuda.protocol.sampling import SamplingParams
from remuda.text.tokenizer import Tokenizer


class InputProcessor:
    """Knows the model's limits. Every request, from HTTP or from `LLM`, enters the engine through here."""

    def __init__(self, model: ModelConfig, tokenizer: Tokenizer | None, max_model_len: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len

    def requests(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        sampling: SamplingParams,
        *,
        images: Sequence[ImageInput] = (),
        priority: int = 0,
        cache_salt: str = "",
    ) -> list[EngineRequest]:
        """`sampling.n` engine requests for one prompt, in order of their index. Raises InvalidRequest."""
        self.check_prompt(prompt_token_ids)
        sampling = self.complete(sampling, len(prompt_token_ids))
        arrival_s = time.monotonic()
        samples = sampled_apart(sampling)
        ids = [request_id] if len(samples) == 1 else [f"{request_id}-{i}" for i in range(len(samples))]
        return [
            EngineRequest(id_, prompt_token_ids, one, arrival_s, priority, cache_salt, list(images))
            for id_, one in zip(ids, samples, strict=True)
        ]

    def check_prompt(self, token_ids: list[int]) -> None:
        if not token_ids:
            raise InvalidRequest("the prompt is empty: it must hold at least one token", param="prompt")
        if min(token_ids) < 0 or max(token_ids) >= self._model.vocab_size:
            raise InvalidRequest(
                f"the prompt has a token id outside the vocabulary of {self._model.vocab_size}", param="prompt"
            )
        if len(token_ids) >= self._max_model_len:
            raise self._too_long(f"the prompt has {len(token_ids)} tokens, which leaves no room for an answer")

    def complete(self, sampling: SamplingParams, prompt_len: int) -> SamplingParams:
        """`sampling` with the fields that the client leaves open: max_tokens, seed, ends of sequence, bad words."""
        sampling.check(self._model.vocab_size)
        if sampling.stop and self._tokenizer is None:
            raise InvalidRequest("stop strings need a tokenizer", param="stop")
        room = self._max_model_len - prompt_len
        max_tokens = room if sampling.max_tokens is None else sampling.max_tokens
        if max_tokens > room:
            raise self._too_long(f"{prompt_len} prompt tokens and max_tokens {max_tokens} exceed it")
        if sampling.min_tokens > max_tokens:
            raise InvalidRequest(f"min_tokens must not exceed max_tokens ({max_tokens})", param="min_tokens")
        return msgspec.structs.replace(
            sampling,
            max_tokens=max_tokens,
            seed=secrets.randbits(63) if sampling.seed is None else sampling.seed,
            eos_token_ids=list(self._model.eos_token_ids),
            bad_words_token_ids=self._bad_words(sampling.bad_words),
        )

    def _bad_words(self, words: Sequence[str]) -> list[list[int]]:
        """Token sequences of every bad word, as it stands at the start of a text and after a space."""
        if words and self._tokenizer is None:
            raise InvalidRequest("bad_words need a tokenizer", param="bad_words")
        found: list[list[int]] = []
        for word in words:
            if not word.strip():
                raise InvalidRequest("bad_words must not contain an empty word", param="bad_words")
            assert self._tokenizer is not None
            for text in (word, " " + word.lstrip()):
                ids = self._tokenizer.encode(text, add_special_tokens=False)
                if ids and ids not in found:
                    found.append(ids)
        return found

    def _too_long(self, what: str) -> InvalidRequest:
        return InvalidRequest(
            f"this model's context is {self._max_model_len} tokens; {what}",
            param="prompt",
            code="context_length_exceeded",
        )


def sampled_apart(sampling: SamplingParams) -> list[SamplingParams]:
    """`n` parameter sets of one sequence each, whose seeds follow the first."""
    if sampling.n == 1:
        return [sampling]
    seed = sampling.seed or 0
    return [msgspec.structs.replace(sampling, n=1, seed=_wrap(seed + i)) for i in range(sampling.n)]


def _wrap(seed: int) -> int:
    """Into the range of a signed 64-bit integer."""
    return (seed + 2**63) % 2**64 - 2**63
