"""Text to token ids and back, over a Hugging Face `tokenizer.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from remuda.protocol.errors import CheckpointError, ConfigError, InvalidRequest

SPECIAL_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class Tokenizer:
    """Encodes prompts, decodes single tokens, and knows each token's bytes.

    `byte_table[id]` holds the bytes of every token of a byte-level BPE (None for other kinds of tokenizer: decode
    those with `backend`). `special_ids` are the ids that `skip_special_tokens` drops.
    """

    def __init__(self, backend: tokenizers.Tokenizer, config: dict[str, Any] | None = None) -> None:
        config = config or {}
        self.backend = backend
        self.config = config
        self.roles = {role: text for role in SPECIAL_ROLES if (text := _content(config.get(role)))}
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(token for token, entry in added.items() if entry.special)
        bos = self.roles.get("bos_token")
        self.bos_token_id: int | None = backend.token_to_id(bos) if bos else None
        # Some repositories ask for BOS in tokenizer_config.json without writing it into the post-processor.
        self._prepend_bos = bool(config.get("add_bos_token")) and self.bos_token_id is not None

    @classmethod
    def from_dir(cls, path: str | Path) -> Tokenizer:
        """Read tokenizer.json, tokenizer_config.json and special_tokens_map.json; raises CheckpointError."""
        folder = Path(path)
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise CheckpointError(
                f"{folder} has no tokenizer.json. Point --tokenizer at a directory that has one "
                "(transformers' save_pretrained() of a fast tokenizer writes it)."
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"{file} is not a tokenizer that this version can read: {error}") from error
        backend.no_padding()
        backend.no_truncation()
        config = read_json(folder / "special_tokens_map.json") | read_json(folder / "tokenizer_config.json")
        return cls(backend, config)

    @cached_property
    def byte_table(self) -> list[bytes] | None:
        """Token id -> bytes if the decoder is byte-level, else None."""
        decoder = json.loads(self.backend.to_str()).get("decoder") or {}
        if decoder.get("type") != "ByteLevel":
            return None
        size = 1 + max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1)
        return [_bytes_of(self.backend.id_to_token(token)) for token in range(size)]

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`; `add_special_tokens` lets the tokenizer put its BOS (or others) around it."""
        try:
            ids: list[int] = self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        except Exception as error:  # lone surrogates and the like
            raise InvalidRequest(f"the text cannot be tokenized: {error}") from error
        return self._with_bos(ids) if add_special_tokens else ids

    def encode_all(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """Like `encode` for every text, on several cores and without holding the GIL: for long texts, off the loop."""
        try:
            found = self.backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        except Exception as error:
            raise InvalidRequest(f"the text cannot be tokenized: {error}") from error
        return [self._with_bos(encoding.ids) if add_special_tokens else encoding.ids for encoding in found]

    @cached_property
    def longest_token(self) -> int | None:
        """Characters that one token stands for at most; None where a normalizer makes that unknown."""
        if self.byte_table is None or self.backend.normalizer is not None:
            return None
        return max(map(len, self.byte_table), default=None)

    def _with_bos(self, ids: list[int]) -> list[int]:
        if self._prepend_bos and self.bos_token_id is not None and ids[:1] != [self.bos_token_id]:
            return [self.bos_token_id, *ids]
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        try:
            text: str = self.backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        except (OverflowError, TypeError) as error:
            raise InvalidRequest("token ids must be integers between 0 and 2^32 - 1") from error
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, which need not be valid UTF-8 on their own."""
        if self.byte_table is not None:
            return self.byte_table[token_id] if 0 <= token_id < len(self.byte_table) else b""
        return self.decode([token_id]).encode()

    def token_text(self, token_id: int) -> str:
        """One token as text; bytes that are no UTF-8 on their own show as U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} if the file does not exist."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a JSON object")
    return value


def _content(entry: Any) -> str | None:
    """A special token is written as its text or as an object with its text under "content"."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None


def _byte_alphabet() -> dict[str, int]:
    """The printable character that byte-level BPE writes for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def _bytes_of(token: str | None) -> bytes:
    """Bytes of a vocabulary entry; one with a character outside the alphabet (an added token) stands for itself."""
    if token is None:
        return b""
    try:
        return bytes([_BYTE_OF[char] for char in token])
    except KeyError:
        return token.encode()
