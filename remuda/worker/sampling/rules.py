"""Sampling parameters of the resident sequences, laid out for whole batches. N slots, S rows, V vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from remuda.protocol.sampling import SamplingParams

Ints = npt.NDArray[np.int64]


class TokenCounts:
    """Distinct tokens of a sequence with how often each was generated (0: it is only in the prompt)."""

    def __init__(self, prompt: npt.NDArray[np.integer]) -> None:
        distinct = np.unique(prompt)
        self._index = dict(zip(distinct.tolist(), range(len(distinct)), strict=True))
        self._tokens = np.empty(len(distinct) + 64, np.int64)
        self._tokens[: len(distinct)] = distinct
        self._generated = np.zeros(len(self._tokens), np.int64)
        self._of_prompt = len(distinct)
        self._counted: list[int] = []

    def follow(self, output: npt.NDArray[np.integer]) -> None:
        """Count `output`. It is what was counted last and more; or less, where drafts were counted and were wrong: then
        at most the last that both have differs."""
        counted = self._counted
        while len(counted) > len(output) or (counted and counted[-1] != output[len(counted) - 1]):
            self._take_back(counted.pop())
        for token in output[len(counted) :].tolist():
            self._add(token)
            counted.append(token)

    def _add(self, token: int) -> None:
        at = self._index.setdefault(token, len(self._index))
        if at == len(self._tokens):
            self._tokens = np.concatenate([self._tokens, np.empty_like(self._tokens)])
            self._generated = np.concatenate([self._generated, np.zeros_like(self._generated)])
        self._tokens[at] = token
        self._generated[at] += 1

    def _take_back(self, token: int) -> None:
        at = self._index[token]
        self._generated[at] -= 1
        if self._generated[at] == 0 and at >= self._of_prompt:
            del self._index[token]  # the last entry: what came after it has been taken back before

    @property
    def tokens(self) -> Ints:
        return self._tokens[: len(self._index)]

    @property
    def generated(self) -> Ints:
        return self._generated[: len(self._index)]


@dataclass(slots=True)
class Adjustments:
    """What changes the logits of one sequence before a token is chosen. None where it asks for nothing."""

    params: SamplingParams
    ending: Ints  # suppressed until min_tokens are out
    allowed: Ints | None
    banned_words: list[list[int]]
    bias_ids: Ints | None
    bias: npt.NDArray[np.float32] | None
    counts: TokenCounts | None  # of penalties

    @classmethod
    def of(cls, params: SamplingParams, prompt: npt.NDArray, vocab_size: int) -> Adjustments:
        bias = {token: value for token, value in (params.logit_bias or {}).items() if token < vocab_size}
        return cls(
            params=params,
            ending=_ids(params.ending_token_ids, vocab_size),
            allowed=None if params.allowed_token_ids is None else _ids(params.allowed_token_ids, vocab_size),
            banned_words=[word for word in params.bad_words_token_ids if word],
            bias_ids=np.array(list(bias), np.int64) if bias else None,
            bias=np.array(list(bias.values()), np.float32) if bias else None,
            counts=TokenCounts(prompt) if has_penalties(params) else None,
        )


def _ids(ids: list[int] | frozenset[int], vocab_size: int) -> Ints:
    return np.array(sorted({token for token in ids if 0 <= token < vocab_size}), np.int64)


def has_penalties(params: SamplingParams) -> bool:
    return bool(params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1.0)


def always_adjusts(params: SamplingParams) -> bool:
    """Whether logits change at every step (min_tokens does so only at first)."""
    return bool(
        has_penalties(params) or params.logit_bias or params.allowed_token_ids is not None or params.bad_words_token_ids
    )


class SamplingRules:
    """Per slot, what the sampler must do. Every rank of the last stage keeps the flags (they decide which collective
    runs); only the driver, which samples, keeps the adjustments."""

    def __init__(self, slots: int, vocab_size: int, driver: bool) -> None:
        self._vocab_size = vocab_size
        self._driver = driver
        self.temperature_N = np.zeros(slots)
        self.top_k_N = np.zeros(slots, np.int64)  # vocab_size: all
        self.top_p_N = np.ones(slots)
        self.min_p_N = np.zeros(slots)
        self.seed_N = np.zeros(slots, np.int64)
        self.min_tokens_N = np.zeros(slots, np.int64)
        self.adjusts_N = np.zeros(slots, np.bool_)
        self.logprobs_N = np.full(slots, -1, np.int64)  # -1: none
        self.prompt_logprobs_N = np.full(slots, -1, np.int64)
        self.adjustments: dict[int, Adjustments] = {}

    def admit(self, slot: int, params: SamplingParams, prompt: npt.NDArray) -> None:
        self.temperature_N[slot] = params.temperature
        self.top_k_N[slot] = params.top_k if 0 < params.top_k < self._vocab_size else self._vocab_size
        self.top_p_N[slot] = params.top_p
        self.min_p_N[slot] = params.min_p
        self.seed_N[slot] = params.seed or 0
        self.min_tokens_N[slot] = params.min_tokens
        self.adjusts_N[slot] = always_adjusts(params)
        self.logprobs_N[slot] = -1 if params.logprobs is None else params.logprobs
        self.prompt_logprobs_N[slot] = -1 if params.prompt_logprobs is None else params.prompt_logprobs
        self.adjustments.pop(slot, None)
        if self._driver and (self.adjusts_N[slot] or params.min_tokens):
            self.adjustments[slot] = Adjustments.of(params, prompt, self._vocab_size)

    def plain_greedy(self, slots: Ints, outputs_S: Ints) -> npt.NDArray[np.bool_]:
        """Rows whose token is the argmax of the raw logits and that report nothing else. `outputs_S`: tokens so far."""
        return (
            (self.temperature_N[slots] == 0.0)
            & ~self.adjusts_N[slots]
            & (outputs_S >= self.min_tokens_N[slots])
            & (self.logprobs_N[slots] < 0)
        )
