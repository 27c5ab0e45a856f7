"""Log-probabilities of the engine in the forms that the two APIs want."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from remuda.protocol.request import TokenLogprobs
from remuda.server.protocol import (
    ChatLogprob,
    ChatLogprobs,
    CompletionLogprobs,
    LogprobByToken,
    PromptLogprob,
    TopLogprob,
)
from remuda.text.tokenizer import Tokenizer

_FLOOR = -9999.0  # JSON has no infinity


class TokenNames(NamedTuple):
    """How tokens are written in answers: as text, or as "token_id:123" where every id must stay distinct."""

    tokenizer: Tokenizer
    as_ids: bool

    def name(self, token_id: int) -> str:
        return f"token_id:{token_id}" if self.as_ids else self.tokenizer.token_text(token_id)


def completion_logprobs(
    names: TokenNames, entries: Sequence[TokenLogprobs | None], token_ids: Sequence[int], top: int, offset: int
) -> CompletionLogprobs:
    """`entries` and `token_ids` run in parallel (None: the first prompt token); `offset`: characters before them."""
    result = CompletionLogprobs([], [], [], [])
    for entry, token_id in zip(entries, token_ids, strict=True):
        name = names.name(token_id)
        result.text_offset.append(offset)
        result.tokens.append(name)
        offset += len(name)
        if entry is None:
            result.token_logprobs.append(None)
            result.top_logprobs.append(None)
            continue
        result.token_logprobs.append(_finite(entry.logprobs[0]))
        # Best first, and the sampled token in any case; two ids of one text keep the likelier.
        best: dict[str, float] = {}
        for token, logprob in [*zip(entry.token_ids[1 : top + 1], entry.logprobs[1 : top + 1], strict=True),
                               (token_id, entry.logprobs[0])]:  # fmt: skip
            best.setdefault(names.name(token), _finite(logprob))
        result.top_logprobs.append(best)
    return result


def chat_logprobs(names: TokenNames, entries: Sequence[TokenLogprobs], top: int) -> ChatLogprobs:
    content = []
    for entry in entries:
        likely = zip(entry.token_ids[1 : top + 1], entry.logprobs[1 : top + 1], strict=True)
        content.append(
            ChatLogprob(
                names.name(entry.token_ids[0]),
                _finite(entry.logprobs[0]),
                list(names.tokenizer.token_bytes(entry.token_ids[0])),
                [
                    TopLogprob(names.name(token), _finite(logprob), list(names.tokenizer.token_bytes(token)))
                    for token, logprob in likely
                ],
            )
        )
    return ChatLogprobs(content)


def prompt_logprobs(names: TokenNames, entries: Sequence[TokenLogprobs | None]) -> list[LogprobByToken | None]:
    """vLLM's form: per prompt position a map of token id to its log-probability and rank (None at the first)."""
    result: list[LogprobByToken | None] = []
    for entry in entries:
        if entry is None:
            result.append(None)
            continue
        position = {entry.token_ids[0]: PromptLogprob(_finite(entry.logprobs[0]), entry.rank, "")}
        for rank, (token, logprob) in enumerate(zip(entry.token_ids[1:], entry.logprobs[1:], strict=True), start=1):
            position.setdefault(token, PromptLogprob(_finite(logprob), rank, ""))
        for token, found in position.items():
            found.decoded_token = names.name(token)
        result.append(position)
    return result


def _finite(logprob: float) -> float:
    return logprob if logprob > _FLOOR else _FLOOR
