"""Messages between an engine client (the HTTP process, or `LLM`) and the engine core."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from remuda.protocol.progress import PhaseProgress
from remuda.protocol.sampling import SamplingParams


class ImageInput(msgspec.Struct, frozen=True, array_like=True):
    """One preprocessed image and the span of prompt positions that it fills.

    ``tiles`` is uint8 [tile_count, 3, size, size], C order, already resized, padded and split (the global tile last).
    Inside the span, positions whose token is the config's ``image_token_id`` take the tower's rows in order; the
    other positions of the span (image_start, separators, ...) are ordinary tokens.
    """

    digest: str  # hex SHA-256 of tiles: enters the block hashes and keys the encoder cache
    start: int  # first prompt position of the span
    length: int  # positions in the span
    tile_count: int
    tiles: bytes


class EngineRequest(msgspec.Struct, frozen=True, tag="add"):
    """A request whose prompt is tokenized and whose sampling parameters are checked and complete (seed, eos ids).

    With `emitted_token_ids` it goes on where another engine left off: they count as its output (penalties, min_tokens,
    max_tokens, random numbers by position), and only what follows them is answered.
    """

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    arrival_s: float  # time.monotonic() at arrival; one machine, so clocks agree
    priority: int = 0  # lower runs first, with --scheduling-policy priority
    cache_salt: str = ""
    images: list[ImageInput] = []
    emitted_token_ids: list[int] = []


class AbortRequest(msgspec.Struct, frozen=True, tag="abort"):
    request_ids: list[str]


class StatsRequest(msgspec.Struct, frozen=True, tag="stats"):
    """Ask for an EngineStats message."""


class ResetPrefixCache(msgspec.Struct, frozen=True, tag="reset_prefix_cache"):
    pass


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Stop at once; the client has drained what it wanted drained."""


ClientMessage = EngineRequest | AbortRequest | StatsRequest | ResetPrefixCache | Shutdown


class FinishReason(StrEnum):
    STOP = "stop"  # an end-of-sequence or stop token (or, found by the client, a stop string)
    LENGTH = "length"  # max_tokens, or the model's length
    ABORT = "abort"
    ERROR = "error"  # see RequestOutput.error


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Natural-log probabilities at one position: the chosen token first, then the most likely ones, best first."""

    token_ids: list[int]
    logprobs: list[float]
    rank: int  # of the chosen token, 1 = most likely


class RequestError(msgspec.Struct, frozen=True, array_like=True):
    """Why the engine refused or ended a request: all that its client's error answer says."""

    message: str
    http_status: int  # 400 refused, 429 queue full, 500 failed
    param: str | None = None
    code: str | None = None


class RequestOutput(msgspec.Struct, frozen=True, array_like=True):
    """What one step added to one request."""

    request_id: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None  # the token that ended it, if it was a stop_token_id (not an eos)
    logprobs: list[TokenLogprobs] | None = None  # one per token id
    prompt_logprobs: list[TokenLogprobs | None] | None = None  # whole prompt, once, with the first token
    cached_tokens: int = 0  # prompt tokens found in the prefix cache; set with the first token
    error: RequestError | None = None


class EngineStats(msgspec.Struct, frozen=True, tag="stats"):
    """A snapshot for /metrics, /load and tests. Counters run since start."""

    running: int = 0
    waiting: int = 0
    kv_pages_total: int = 0
    kv_pages_used: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    prefix_queries_tokens: int = 0
    prefix_hits_tokens: int = 0


class StepOutputs(msgspec.Struct, frozen=True, tag="outputs"):
    """Every output of one engine step in one message; `stats` rides along now and then."""

    outputs: list[RequestOutput]
    stats: EngineStats | None = None


class EngineReady(msgspec.Struct, frozen=True, tag="ready"):
    """Start-up is complete (self-test passed). `report` is the layout text to print."""

    max_model_len: int
    kv_pages: int
    block_size: int
    max_concurrency: float  # sequences of max_model_len that the cache holds
    report: str


class EngineFailed(msgspec.Struct, frozen=True, tag="failed"):
    """The replica is gone, or could not start. `cause` as in ReplicaDied."""

    message: str
    node: int = 0
    rank: int | None = None
    cause: str = "engine"


EngineMessage = StepOutputs | EngineStats | EngineReady | PhaseProgress | EngineFailed
