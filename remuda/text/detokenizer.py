"""Incremental detokenization: token ids in, text out, never a broken character and never a piece of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from remuda.protocol.sampling import SamplingParams
from remuda.text.tokenizer import Tokenizer

_utf8 = codecs.getincrementaldecoder("utf-8")
_MAX_HELD_TOKENS = 16  # no character takes more; what is still broken then stays broken


class TextDecoder(Protocol):
    """Turns tokens into text, holding back the bytes of an incomplete character."""

    def feed(self, token_ids: Sequence[int]) -> str: ...

    def flush(self) -> str:
        """What is still held back, when no token follows: an unfinished character becomes U+FFFD."""
        ...


class ByteLevelDecoder:
    """For byte-level BPE: a table lookup per token and the codec's own incremental UTF-8 decoder."""

    def __init__(self, table: list[bytes], skipped: frozenset[int]) -> None:
        self._table = table
        self._skipped = skipped
        self._decode = _utf8("replace").decode

    def feed(self, token_ids: Sequence[int]) -> str:
        table, skipped = self._table, self._skipped
        if len(token_ids) == 1:
            token = token_ids[0]
            return "" if token in skipped or token >= len(table) else self._decode(table[token])
        size = len(table)
        return self._decode(b"".join([table[t] for t in token_ids if t not in skipped and t < size]))

    def flush(self) -> str:
        return self._decode(b"", True)


class WindowDecoder:
    """For every other tokenizer: decode the last tokens again with the new one, and show by how much the text grew.

    The tokens shown last stay in the window because a decoder may treat the start of a text differently (Llama 2 strips
    a space there). The library's own DecodeStream gives up on byte sequences that are no UTF-8; a model may emit any.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self._decode = lambda ids: tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        self._shown: list[int] = []  # context: tokens whose text is out
        self._shown_length = 0  # characters that they make
        self._held: list[int] = []  # tokens whose text is not out yet

    def feed(self, token_ids: Sequence[int]) -> str:
        return "".join([self._feed_one(token) for token in token_ids])

    def flush(self) -> str:
        return self._decode(self._shown + self._held)[self._shown_length :] if self._held else ""

    def _feed_one(self, token: int) -> str:
        self._held.append(token)
        text = self._decode(self._shown + self._held)
        unfinished = len(text) <= self._shown_length or text.endswith("\ufffd")
        if unfinished and len(self._held) < _MAX_HELD_TOKENS:
            return ""
        piece = text[self._shown_length :]
        self._shown, self._held = self._held, []
        self._shown_length = len(self._decode(self._shown))
        return piece


def text_decoder(tokenizer: Tokenizer, *, skip_special_tokens: bool) -> TextDecoder:
    """The fastest decoder for this tokenizer."""
    if tokenizer.byte_table is not None:
        return ByteLevelDecoder(tokenizer.byte_table, tokenizer.special_ids if skip_special_tokens else frozenset())
    return WindowDecoder(tokenizer, skip_special_tokens)


class StopMatcher:
    """Finds the first stop string in a text that arrives in pieces; the outcome does not depend on how it is cut.

    The match that ends first wins; of several that end at the same character, the longest.
    """

    def __init__(self, stops: Sequence[str], include_in_output: bool) -> None:
        self._stops = sorted(stops, key=len, reverse=True)
        self._include = include_in_output
        self._longest = max(map(len, stops))
        self._first_chars = frozenset(stop[0] for stop in stops)
        self._held = ""  # the tail that may yet become a stop string
        self.matched: str | None = None

    def feed(self, text: str, *, final: bool = False) -> str:
        """Text that may be shown now. After a match (`matched` is set) the rest is dropped."""
        text = self._held + text
        best: tuple[int, str] | None = None
        for stop in self._stops:
            start = text.find(stop)
            if start >= 0 and (best is None or start + len(stop) < best[0]):
                best = start + len(stop), stop
        if best is not None:
            end, self.matched = best
            self._held = ""
            return text[: end if self._include else end - len(self.matched)]
        cut = len(text) if final else self._safe_length(text)
        self._held = text[cut:]
        return text[:cut]

    def _safe_length(self, text: str) -> int:
        """Characters before the longest tail that begins a stop string."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[start] in self._first_chars:
                tail = text[start:]
                if any(stop.startswith(tail) for stop in self._stops):
                    return start
        return len(text)


class Detokenizer:
    """The visible text of one request as its tokens arrive."""

    def __init__(self, tokenizer: Tokenizer, sampling: SamplingParams) -> None:
        self._decoder = text_decoder(tokenizer, skip_special_tokens=sampling.skip_special_tokens)
        self._matcher = StopMatcher(sampling.stop, sampling.include_stop_str_in_output) if sampling.stop else None
        self._exempt = sampling.min_tokens if sampling.stop else 0  # stop strings are not looked for in these tokens

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text, once one did."""
        return self._matcher.matched if self._matcher else None

    def feed(self, token_ids: Sequence[int]) -> str:
        """Text that these tokens make visible (possibly none)."""
        if self._matcher is None:
            return self._decoder.feed(token_ids)
        shown = ""
        if self._exempt:
            shown = self._decoder.feed(token_ids[: self._exempt])
            token_ids, self._exempt = token_ids[self._exempt :], max(0, self._exempt - len(token_ids))
        return shown + self._matcher.feed(self._decoder.feed(token_ids)) if token_ids else shown

    def flush(self) -> str:
        """The last text, after the last token: what was held back and is no stop string."""
        if self._matcher is None:
            return self._decoder.flush()
        return "" if self._matcher.matched else self._matcher.feed(self._decoder.flush(), final=True)
