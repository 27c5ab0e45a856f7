"""Prompts for a benchmark: random ones of a wanted length, or a file's. All seeded."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remuda.protocol.errors import ConfigError

_FIRST_PLAIN_ID = 300  # small ids are bytes and special tokens in common byte-level vocabularies


@dataclass(frozen=True)
class Sample:
    """One request to make: a text or token ids, and how much to ask for."""

    prompt: str | list[int]
    output_tokens: int


def spread(rng: random.Random, length: int, ratio: float) -> int:
    """A length drawn evenly from `length` x [1 - ratio, 1 + ratio]."""
    return max(1, rng.randint(round(length * (1 - ratio)), round(length * (1 + ratio))))


def random_ids(count: int, length: int, vocab_size: int, seed: int, ratio: float = 0.0) -> list[list[int]]:
    """`count` prompts of plain token ids, the last few ids of the vocabulary left out."""
    rng = random.Random(seed)
    first = min(_FIRST_PLAIN_ID, vocab_size // 2)
    return [
        [rng.randrange(first, max(first + 1, vocab_size - 8)) for _ in range(spread(rng, length, ratio))]
        for _ in range(count)
    ]


def random_texts(count: int, length: int, tokenizer_path: Path | None, seed: int, ratio: float = 0.0) -> list[str]:
    """Texts of about `length` tokens: random tokens decoded, or random words where no tokenizer is known."""
    if tokenizer_path is None:
        rng = random.Random(seed)
        letters = "etaoinshrdlu"
        return [
            " ".join("".join(rng.choices(letters, k=rng.randint(2, 6))) for _ in range(spread(rng, length, ratio)))
            for _ in range(count)
        ]
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    prompts = random_ids(count, length, tokenizer.get_vocab_size(), seed, ratio)
    return [tokenizer.decode(prompt) for prompt in prompts]


def from_file(path: Path, count: int, output_tokens: int, seed: int) -> list[Sample]:
    """Samples of a JSON-lines file ({"prompt": ..., "output_tokens": N}) or of a ShareGPT-like list."""
    try:
        text = path.read_text(encoding="utf-8")
        rows = (
            json.loads(text)
            if text.lstrip().startswith("[")
            else [json.loads(x) for x in text.splitlines() if x.strip()]
        )
    except OSError as error:
        raise ConfigError(f"--dataset-path {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"--dataset-path {path} is neither JSON lines nor a JSON list: {error}") from error
    samples = [sample for row in rows if (sample := _sample_of(row, output_tokens))]
    if not samples:
        raise ConfigError(f'--dataset-path {path} holds no row with "prompt" or "conversations"')
    random.Random(seed).shuffle(samples)
    return [samples[i % len(samples)] for i in range(count)]


def _sample_of(row: Any, output_tokens: int) -> Sample | None:
    if not isinstance(row, dict):
        return None
    if isinstance(row.get("prompt"), str):
        wanted = row.get("output_tokens", output_tokens)
        if type(wanted) is not int or wanted < 1:
            raise ConfigError(f"--dataset-path: output_tokens must be a whole number of at least 1, not {wanted!r:.40}")
        return Sample(row["prompt"], wanted)
    turns = row.get("conversations")
    if isinstance(turns, list) and turns and isinstance(turns[0], dict) and isinstance(turns[0].get("value"), str):
        return Sample(turns[0]["value"], output_tokens)
    return None
