"""Incremental text must equal what decoding everything at once gives, however the tokens and stop strings are cut."""

from __future__ import annotations

import time
from functools import cache

import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models

from remuda.protocol.sampling import SamplingParams
from remuda.text.detokenizer import Detokenizer, StopMatcher, WindowDecoder, text_decoder
from remuda.text.tokenizer import Tokenizer
from tests.text import tiny


@cache
def byte_level() -> Tokenizer:
    return tiny.tokenizer()


@cache
def byte_fallback() -> Tokenizer:
    """Llama-2 style: word starts marked by U+2581, unknown bytes as <0xNN>; not byte-level."""
    pieces = ["<unk>", "▁", "a", "b", "▁a", "▁ab", "é", "▁日", "本"] + [f"<0x{byte:02X}>" for byte in range(256)]
    backend = tokenizers.Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True, unk_token="<unk>")
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(backend)


tokens = st.integers(0, byte_level().vocab_size - 1)
texts = st.text(st.sampled_from("abcé日本🎉 x")) | st.text(max_size=12)


def pieces_of(items: list[int], cuts: list[int]) -> list[list[int]]:
    places = sorted({cut % (len(items) + 1) for cut in cuts})
    return [items[a:b] for a, b in zip([0, *places], [*places, len(items)], strict=True)]


@given(st.lists(tokens, max_size=40), st.lists(st.integers(0, 100), max_size=10), st.booleans())
def test_byte_level_text_equals_the_full_decode(ids: list[int], cuts: list[int], skip: bool) -> None:
    tokenizer = byte_level()
    detokenizer = Detokenizer(tokenizer, SamplingParams(skip_special_tokens=skip))
    text = "".join(detokenizer.feed(piece) for piece in pieces_of(ids, cuts)) + detokenizer.flush()
    assert text == tokenizer.decode(ids, skip_special_tokens=skip)


@given(texts)
def test_no_piece_ever_holds_a_broken_character(text: str) -> None:
    """Fed byte by byte, every emitted piece is made of whole characters of the text."""
    tokenizer = byte_level()
    single = {tokenizer.token_bytes(token): token for token in reversed(range(tokenizer.vocab_size))}
    detokenizer = Detokenizer(tokenizer, SamplingParams())
    pieces = [detokenizer.feed([single[bytes([byte])]]) for byte in text.encode()]
    assert all(len(piece) <= 1 for piece in pieces)
    assert "".join(pieces) + detokenizer.flush() == text


@given(
    st.lists(st.sampled_from(["▁", "a", "b", "▁a", "▁ab", "é", "▁日", "本", "ß", "🎉", "\n"]), min_size=1, max_size=20)
)
def test_other_decoders_stream_the_full_decode(pieces: list[str]) -> None:
    """Characters without a token of their own arrive as one token per byte."""
    tokenizer = byte_fallback()
    vocab = tokenizer.backend.get_vocab()
    ids = [vocab[name] for p in pieces for name in ([p] if p in vocab else [f"<0x{byte:02X}>" for byte in p.encode()])]
    decoder = text_decoder(tokenizer, skip_special_tokens=True)
    assert isinstance(decoder, WindowDecoder)
    shown = [decoder.feed([token]) for token in ids]
    assert not any("\ufffd" in piece for piece in shown)
    assert "".join(shown) + decoder.flush() == tokenizer.decode(ids, skip_special_tokens=True)


@given(st.lists(st.integers(0, byte_fallback().vocab_size + 3), max_size=60))
def test_other_decoders_survive_any_tokens(ids: list[int]) -> None:
    """Bytes that are no UTF-8, and ids that are no token."""
    decoder = text_decoder(byte_fallback(), skip_special_tokens=True)
    for token in ids:
        decoder.feed([token])
    decoder.flush()


def reference_stop(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """Character by character: at each place, is there a stop string that ends here?"""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


alphabet = st.sampled_from("abé🎉")


@settings(max_examples=300)
@given(
    st.text(alphabet, max_size=30),
    st.lists(st.text(alphabet, min_size=1, max_size=5), min_size=1, max_size=4),
    st.lists(st.integers(0, 100), max_size=12),
    st.booleans(),
)
def test_stop_strings_are_found_however_the_text_is_cut(
    text: str, stops: list[str], cuts: list[int], include: bool
) -> None:
    matcher = StopMatcher(stops, include)
    expected, stop = reference_stop(text, stops, include)
    shown = ""
    for piece in pieces_of(list(text), cuts):  # type: ignore[arg-type]
        shown += matcher.feed("".join(piece))  # type: ignore[arg-type]
        assert expected.startswith(shown), "showed text that belongs to a stop string"
        if matcher.matched:
            break
    else:
        shown += matcher.feed("", final=True)
    assert (shown, matcher.matched) == (expected, stop)


@given(st.text(alphabet, min_size=1, max_size=20), st.integers(0, 20))
def test_stop_strings_across_token_borders(text: str, at: int) -> None:
    tokenizer = byte_level()
    stop = text[at % len(text) :][:3]
    single = {tokenizer.token_bytes(token): token for token in reversed(range(tokenizer.vocab_size))}
    ids = [single[bytes([byte])] for byte in text.encode()]
    detokenizer = Detokenizer(tokenizer, SamplingParams(stop=[stop]))
    shown = ""
    for token in ids:
        shown += detokenizer.feed([token])
        if detokenizer.stop_string:
            break
    assert detokenizer.stop_string == stop
    assert shown == text[: text.index(stop)]


def test_stop_strings_within_min_tokens_do_not_count() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("the end the end", add_special_tokens=False)
    half = len(tokenizer.encode("the end", add_special_tokens=False))
    detokenizer = Detokenizer(tokenizer, SamplingParams(stop=["end"], min_tokens=half, max_tokens=99))
    assert "".join(detokenizer.feed([token]) for token in ids) == "the end the "
    assert detokenizer.stop_string == "end"


def test_an_unfinished_character_shows_only_at_the_end() -> None:
    tokenizer = byte_level()
    single = {tokenizer.token_bytes(token): token for token in range(tokenizer.vocab_size)}
    detokenizer = Detokenizer(tokenizer, SamplingParams(stop=["zz"]))
    assert detokenizer.feed([single[b"\xf0"]]) == ""
    assert detokenizer.flush() == "\ufffd"


def test_ids_outside_the_vocabulary_are_silent() -> None:
    """A padded vocabulary has ids without a token."""
    tokenizer = byte_level()
    detokenizer = Detokenizer(tokenizer, SamplingParams())
    assert detokenizer.feed([tokenizer.vocab_size + 5]) + detokenizer.feed([tokenizer.vocab_size + 5, 10**9]) == ""


def test_a_token_costs_little() -> None:
    """A few microseconds at most, also with stop strings (about 0.5 measured; the bar leaves room for others)."""
    tokenizer = byte_level()
    ids = tokenizer.encode("The quick brown fox jumps over the lazy dog. " * 40, add_special_tokens=False)
    for sampling in (SamplingParams(), SamplingParams(stop=["User:", "\n\n\n", "<END>"])):
        best = float("inf")
        for _ in range(5):
            detokenizer = Detokenizer(tokenizer, sampling)
            start = time.process_time()
            for token in ids:
                detokenizer.feed([token])
            best = min(best, time.process_time() - start)
        assert best / len(ids) < 8e-6
