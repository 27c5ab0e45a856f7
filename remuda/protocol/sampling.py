"""What a client may ask of the sampler, as one immutable message.

Names, defaults and meanings are those of the OpenAI API and of vLLM's ``SamplingParams`` so that code carries over.
"""

from __future__ import annotations

import msgspec

from remuda.protocol.errors import InvalidRequest

MAX_LOGPROBS = 20


class SamplingParams(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How to choose the tokens of one request.

    ``temperature`` 0 is greedy. ``top_k`` 0 or -1 keeps every token. ``seed`` None draws a fresh seed when the request
    arrives; from then on the random stream is a function of (seed, position) only. ``logprobs`` k returns the k most
    likely tokens beside the sampled one; ``prompt_logprobs`` k the same for every prompt position after the first.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    stop: list[str] = []
    stop_token_ids: list[int] = []
    bad_words: list[str] = []
    allowed_token_ids: list[int] | None = None
    min_tokens: int = 0
    max_tokens: int | None = 16
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    detokenize: bool = True

    # Filled in when the request is accepted; a client does not set these.
    eos_token_ids: list[int] = []
    bad_words_token_ids: list[list[int]] = []

    def __post_init__(self) -> None:
        for name in ("stop", "bad_words"):
            value = getattr(self, name)
            if not isinstance(value, list):  # one text, or None, as vLLM takes them
                single = isinstance(value, str)
                msgspec.structs.force_setattr(self, name, [value] if single else list(value or ()))

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def ending_token_ids(self) -> frozenset[int]:
        """Tokens that end the request (and that ``min_tokens`` suppresses)."""
        return frozenset(self.stop_token_ids if self.ignore_eos else [*self.eos_token_ids, *self.stop_token_ids])

    def check(self, vocab_size: int) -> None:
        """Raise InvalidRequest, naming the parameter, if a value is out of its range."""
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:  # also refuses NaN
                raise InvalidRequest(f"{name} must be between {low:g} and {high:g}, not {value}", param=name)
        if not 0.0 < self.top_p <= 1.0:
            raise InvalidRequest(f"top_p must be in (0, 1], not {self.top_p}", param="top_p")
        if not 0.0 < self.repetition_penalty <= 1e3:
            raise InvalidRequest("repetition_penalty must be above 0", param="repetition_penalty")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest("min_tokens must not exceed max_tokens", param="min_tokens")
        if any(not text for text in self.stop):
            raise InvalidRequest("stop must not contain an empty string", param="stop")
        if len(self.stop) > 64 or len(self.stop_token_ids) > 1024 or len(self.bad_words) > 1024:
            raise InvalidRequest("too many stop strings, stop_token_ids or bad_words", param="stop")
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise InvalidRequest("allowed_token_ids must not be empty", param="allowed_token_ids")
        for name in ("stop_token_ids", "allowed_token_ids"):
            if any(not 0 <= token < vocab_size for token in getattr(self, name) or ()):
                raise InvalidRequest(f"{name} has an id outside the vocabulary of {vocab_size}", param=name)
        for token, bias in (self.logit_bias or {}).items():
            if not 0 <= token < vocab_size:
                raise InvalidRequest(f"logit_bias has id {token}, outside the vocabulary", param="logit_bias")
            if not -100.0 <= bias <= 100.0:
                raise InvalidRequest("logit_bias values must be between -100 and 100", param="logit_bias")


_RANGES = (
    ("n", 1, 128),
    ("temperature", 0.0, 1e3),
    ("top_k", -1, 2**31 - 1),
    ("min_p", 0.0, 1.0),
    ("presence_penalty", -2.0, 2.0),
    ("frequency_penalty", -2.0, 2.0),
    ("seed", -(2**63), 2**63 - 1),
    ("min_tokens", 0, 2**31 - 1),
    ("max_tokens", 1, 2**31 - 1),
    ("logprobs", 0, MAX_LOGPROBS),
    ("prompt_logprobs", 0, MAX_LOGPROBS),
)
