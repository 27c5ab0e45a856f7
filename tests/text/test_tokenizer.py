from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models

from remuda.protocol.errors import CheckpointError, InvalidRequest
from remuda.text.tokenizer import Tokenizer
from tests.text import tiny


def test_bos_comes_from_the_post_processor_and_only_when_asked(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_dir(tiny.write(tmp_path))
    assert tokenizer.bos_token_id is not None
    plain = tokenizer.encode("Hello", add_special_tokens=False)
    assert tokenizer.encode("Hello") == [tokenizer.bos_token_id, *plain]


def test_add_bos_token_of_the_config_is_honoured(tmp_path: Path) -> None:
    backend = json.loads(tiny.backend_json()) | {"post_processor": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(backend))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tiny.config() | {"add_bos_token": True}))
    tokenizer = Tokenizer.from_dir(tmp_path)
    assert tokenizer.encode("Hello")[0] == tokenizer.bos_token_id
    assert tokenizer.encode("<|begin_of_text|>Hello").count(tokenizer.bos_token_id or 0) == 1
    assert tokenizer.encode("Hello", add_special_tokens=False)[0] != tokenizer.bos_token_id


def test_special_tokens_map_fills_what_the_config_lacks(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(tiny.backend_json())
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|eot|>"}}))
    assert Tokenizer.from_dir(tmp_path).roles == {"eos_token": "<|eot|>"}


def test_padding_and_truncation_of_the_file_are_off(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_str(tiny.backend_json())
    backend.enable_truncation(3)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert len(Tokenizer.from_dir(tmp_path).encode("one two three four five")) > 8


def test_every_token_has_its_bytes() -> None:
    tokenizer = tiny.tokenizer()
    text = "naïve 日本語 🎉<|eot|>"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(tokenizer.token_bytes(token) for token in ids) == text.encode()
    assert tokenizer.token_bytes(10**6) == b""


def test_special_ids_are_the_special_tokens() -> None:
    tokenizer = tiny.tokenizer()
    assert sorted(tokenizer.token_text(token) for token in tokenizer.special_ids) == sorted(tiny.SPECIAL)


def test_a_tokenizer_that_is_not_byte_level_has_no_table() -> None:
    tokenizer = Tokenizer(tokenizers.Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")))
    assert tokenizer.byte_table is None
    assert tokenizer.token_bytes(0) == b"a"


def test_missing_and_broken_files_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json.*--tokenizer"):
        Tokenizer.from_dir(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a tokenizer"):
        Tokenizer.from_dir(tmp_path)
    tiny.write(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json is not readable JSON"):
        Tokenizer.from_dir(tmp_path)


def test_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="cannot be tokenized"):
        tiny.tokenizer().encode("\ud800")


def test_many_texts_at_once_are_the_same_as_one_by_one() -> None:
    texts = ["one", "naïve 日本語 🎉", "", "a much longer text " * 50]
    tokenizer = tiny.tokenizer()
    for special in (False, True):
        expected = [tokenizer.encode(text, add_special_tokens=special) for text in texts]
        assert tokenizer.encode_all(texts, add_special_tokens=special) == expected
    with pytest.raises(InvalidRequest):
        tokenizer.encode_all(["fine", "\ud800"])


def test_a_token_stands_for_few_characters() -> None:
    tokenizer = tiny.tokenizer()
    assert tokenizer.longest_token == max(len(text) for text in tiny.SPECIAL)
    backend = json.loads(tiny.backend_json()) | {"normalizer": {"type": "Lowercase"}}
    assert Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(backend))).longest_token is None


def test_negative_ids_are_refused() -> None:
    with pytest.raises(InvalidRequest):
        tiny.tokenizer().decode([-1])
