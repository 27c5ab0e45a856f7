"""Tokens proposed ahead of the model, which it then checks all at once: what proposes them, and what became of them.

A row that carries drafts asks for the token after its last known one and after each draft. Its result is the drafts
that equal what the model chose, in order, and the token that it chose after them. Whatever is proposed, the output is
the same; only the number of steps differs.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from remuda.engine.sequence import Sequence
from remuda.protocol.request import RequestOutput


class Drafter(Protocol):
    """Proposes; nothing depends on its being right. Asked for every sequence whose turn it is, so it must be quick."""

    def propose(self, seq: Sequence, most: int) -> list[int]:
        """At most `most` token ids that may follow `seq.token_ids`, all of which have been seen. [] where unsure."""
        ...


def as_one(outputs: list[RequestOutput]) -> RequestOutput:
    """The outputs of consecutive tokens of one sequence, as one."""
    first, last = outputs[0], outputs[-1]
    logprobs = [entry for output in outputs for entry in output.logprobs or ()]
    return msgspec.structs.replace(
        last,
        token_ids=[token for output in outputs for token in output.token_ids],
        logprobs=logprobs or None,
        prompt_logprobs=first.prompt_logprobs,
        cached_tokens=first.cached_tokens,
    )
