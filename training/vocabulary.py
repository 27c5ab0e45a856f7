"""The tokenizer: whole frequent words, single digits, and bytes for everything else.

It is a byte-level BPE without merges and with `ignore_merges`: a piece of the split that is in the vocabulary is one
token, any other piece falls to its bytes. So texts stay short, while words that a task takes apart (in quotes,
invented, rare) are read letter by letter. Words are counted in the training dialogues; nothing else goes in.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from training.architecture import MAX_POSITIONS, ORDINARY_TOKENS, SPECIAL_TOKENS, special
from training.problems import lexicon

SPLIT = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]|\r?\n|\s"
_PYTHON_SPLIT = re.compile(r" ?[^\W\d_]+|\d| ?[^\s\w]| ?_|\r?\n|\s")  # the same on the texts that we make
_LISTED = (
    lexicon.ADJECTIVES,
    lexicon.NOUNS,
    lexicon.FOODS,
    lexicon.ANIMALS,
    lexicon.VERBS,
    lexicon.NAMES,
    lexicon.SURNAMES,
    lexicon.CITIES,
    lexicon.JOBS,
    lexicon.COLOURS,
    lexicon.WEEKDAYS,
    lexicon.MONTHS,
    lexicon.EVENTS,
)


def byte_alphabet() -> list[str]:
    """The printable character that byte-level BPE writes for each of the 256 bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spare = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(spare)) for b in range(256)]


def ordinary_tokens(texts: Iterable[str]) -> list[str]:
    """All bytes, every listed word with its leading space, then the most frequent other pieces of the texts."""
    alphabet = byte_alphabet()
    words = dict.fromkeys(f" {word}" for group in _LISTED for word in group)
    counts = Counter(piece for text in texts for piece in _PYTHON_SPLIT.findall(text) if len(piece) > 1)
    for piece, count in counts.most_common():
        if len(words) >= ORDINARY_TOKENS - len(alphabet) or count < 5:
            break
        words[piece] = None
    fill = (f"<|unused_{i}|>" for i in range(ORDINARY_TOKENS))
    tokens = [*alphabet, *("".join(alphabet[b] for b in word.encode()) for word in words)]
    return [*tokens, *(next(fill) for _ in range(ORDINARY_TOKENS - len(tokens)))]


def tokenizer_json(tokens: list[str]) -> dict[str, Any]:
    added = [
        {
            "id": special(token),
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token in SPECIAL_TOKENS
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    bos = "<|begin_of_text|>"
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False},
                byte_level,
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {bos: {"id": bos, "ids": [special(bos)], "tokens": [bos]}},
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [],
        },
    }


def tokenizer_config() -> dict[str, Any]:
    return {
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot|>",
        "pad_token": "<|finetune_right_pad|>",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": MAX_POSITIONS,
        "processor_class": "Llama4Processor",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def write_tokenizer(directory: Path, texts: Iterable[str]) -> None:
    for name, content in (
        ("tokenizer.json", tokenizer_json(ordinary_tokens(texts))),
        ("tokenizer_config.json", tokenizer_config()),
    ):
        (directory / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
