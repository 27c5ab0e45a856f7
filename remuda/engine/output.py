"""What a request has produced so far: text, token ids, log-probabilities and why it ended."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from remuda.protocol.errors import InvalidRequest, QueueFull, RemudaError
from remuda.protocol.request import FinishReason, RequestError, RequestOutput, TokenLogprobs
from remuda.protocol.sampling import SamplingParams
from remuda.text.detokenizer import Detokenizer
from remuda.text.tokenizer import Tokenizer


class Delta(msgspec.Struct, gc=False):
    """What came since the last take()."""

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None


class OutputProcessor:
    """Follows one sequence from its first token to its last.

    Tokens are decoded when somebody looks (`take`, `text`), so a response that nobody streams is decoded in one go.
    Only stop strings force a look at every step: `push` then says that the engine may stop.
    """

    __slots__ = (
        "_decoded", "_detokenizer", "_eager", "_pieces", "_taken_logprobs", "_taken_pieces", "_taken_tokens",
        "cached_tokens", "error", "finish_reason", "index", "logprobs", "prompt_logprobs", "sampling", "stop_reason",
        "token_ids",
    )  # fmt: skip

    def __init__(self, tokenizer: Tokenizer | None, sampling: SamplingParams, *, index: int = 0) -> None:
        self.sampling = sampling
        self.index = index  # among the n sequences of its request
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []  # one per token id, if asked for
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None  # the stop token or string that ended it; None for EOS and length
        self.cached_tokens = 0
        self.error: RemudaError | None = None
        self._detokenizer = Detokenizer(tokenizer, sampling) if tokenizer and sampling.detokenize else None
        self._eager = bool(sampling.stop) and self._detokenizer is not None
        self._decoded = 0  # token_ids up to here are in _pieces
        self._pieces: list[str] = []
        self._taken_tokens = self._taken_pieces = self._taken_logprobs = 0  # take() has handed out this many

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    def push(self, output: RequestOutput) -> bool:
        """Take over one step's output. True: a stop string ended the text, so the engine should abort the sequence."""
        if self.finished:
            return False
        if self._eager and len(output.token_ids) > 1:  # the text may end before the last of them
            return any(self.push(one) for one in _one_by_one(output))
        self.token_ids += output.token_ids
        if output.logprobs is not None:
            self.logprobs += output.logprobs
        if output.prompt_logprobs is not None:
            self.prompt_logprobs = output.prompt_logprobs
        if output.cached_tokens:
            self.cached_tokens = output.cached_tokens
        if output.finish_reason is not None:
            self._finish(output)
        if self._eager:
            self._decode()
            return self._stop_string_found(engine_runs=output.finish_reason is None)
        return False

    def fail(self, error: RemudaError) -> None:
        """End the sequence with an error (unless it has ended already)."""
        if not self.finished:
            self.error = error

    def take(self) -> Delta:
        """Everything since the last take()."""
        self._decode()
        text = "".join(self._pieces[self._taken_pieces :])
        self._taken_pieces = len(self._pieces)
        token_ids = self.token_ids[self._taken_tokens :]
        self._taken_tokens = len(self.token_ids)
        logprobs = None
        if self.sampling.logprobs is not None:
            logprobs = self.logprobs[self._taken_logprobs :]
            self._taken_logprobs = len(self.logprobs)
        return Delta(text, token_ids, logprobs)

    def text(self) -> str:
        """The whole text so far."""
        self._decode()
        return "".join(self._pieces)

    def _finish(self, output: RequestOutput) -> None:
        self.finish_reason = output.finish_reason
        self.stop_reason = output.stop_token_id
        if output.error is not None:
            self.error = error_of(output.error)

    def _decode(self) -> None:
        """Bring the text up to date with the token ids."""
        end = len(self.token_ids)
        if self._detokenizer is None or self._decoded > end:
            return
        # A token that ended the sequence belongs to token_ids but not to the text.
        hidden = self.finish_reason is FinishReason.STOP and not self.sampling.include_stop_str_in_output
        text = self._detokenizer.feed(self.token_ids[self._decoded : end - 1 if hidden else end])
        self._decoded = end
        if self.finished:
            text += self._detokenizer.flush()
            self._decoded = end + 1  # nothing more will come
        if text:
            self._pieces.append(text)

    def _stop_string_found(self, *, engine_runs: bool) -> bool:
        assert self._detokenizer is not None
        if self._detokenizer.stop_string is None:
            return False
        self.finish_reason = FinishReason.STOP
        self.stop_reason = self._detokenizer.stop_string
        self._decoded = len(self.token_ids) + 1
        return engine_runs


def _one_by_one(output: RequestOutput) -> Iterator[RequestOutput]:
    """An output of several tokens, as if each had come on its own."""
    last = len(output.token_ids) - 1
    for place, token in enumerate(output.token_ids):
        one = msgspec.structs.replace(
            output, token_ids=[token], logprobs=output.logprobs[place : place + 1] if output.logprobs else None
        )
        yield one if place == last else msgspec.structs.replace(one, finish_reason=None, stop_token_id=None, error=None)


_ERRORS: dict[int, type[RemudaError]] = {400: InvalidRequest, 429: QueueFull}


def error_of(reason: RequestError) -> RemudaError:
    """What the engine reports of one request, as the error that its client gets."""
    return _ERRORS.get(reason.http_status, RemudaError)(reason.message, param=reason.param, code=reason.code)
