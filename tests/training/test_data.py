"""Training chats: only the train side, only assistant tokens trained, rows packed within their limits."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch

from training.architecture import CHUNK, EOT, PAD, special
from training.dialogues import dialogue, mix_at
from training.examples import Encoder, Example
from training.offtopic import off_topic
from training.packing import LONGEST, RowShape, pack
from training.problems.offtopic import HANDWRITTEN_PROMPTS
from training.problems.problem import assistant, system, user
from training.train import CHECKPOINT


@pytest.fixture(scope="module")
def encode() -> Encoder:
    return Encoder(CHECKPOINT)


def blank(length: int, tiles: int = 0) -> Example:
    trained = np.zeros(length, np.bool_)
    trained[-2:] = True
    return Example(np.arange(1, length + 1, dtype=np.int32) % 1000, trained, np.zeros((tiles, 3, 112, 112), np.uint8))


def test_only_the_replies_are_trained_with_their_end(encode: Encoder) -> None:
    chat = [system("Be brief."), user("What is 1 + 2?"), assistant("1 + 2 = 3"), user("Spell it."), assistant("t-h")]
    example = encode(chat, [])
    decoded = encode.tokenizer.decode(example.ids[example.trained].tolist())
    assert decoded == "1 + 2 = 3<|eot|>t-h<|eot|>"
    last = encode(chat, [], last_only=True)
    assert encode.tokenizer.decode(last.ids[last.trained].tolist()) == "t-h<|eot|>"


def test_text_survives_the_tokenizer_and_digits_stand_alone(encode: Encoder) -> None:
    text = 'Ünïcode, 12345 → "lantern" the amber lantern\r\n\n\t{"a_b": [1]} 漢字'
    ids = encode.tokenizer.encode(text, add_special_tokens=False)
    assert encode.tokenizer.decode(ids) == text
    assert len(encode.tokenizer.encode("12345", add_special_tokens=False)) == 5
    assert len(encode.tokenizer.encode(" amber lantern", add_special_tokens=False)) == 2  # listed words are one token
    assert len(encode.tokenizer.encode('"amber"', add_special_tokens=False)) == 7  # in quotes: letter by letter
    assert encode.tokenizer.encode("<|eot|>", add_special_tokens=False) == [EOT] == [special("<|eot|>")]


def test_chats_of_every_stage_of_the_curriculum_encode(encode: Encoder) -> None:
    rng = Random(0)
    for progress in (0.0, 0.2, 1.0):
        for _ in range(40):
            example = encode(*dialogue(rng, mix_at(progress)))
            assert example.trained.any() and not example.trained[0]


def test_off_topic_training_never_draws_a_handwritten_prompt() -> None:
    rng = Random(1)
    drawn = {off_topic(rng).messages[0]["content"] for _ in range(5000)}
    assert len(drawn) > 3000 and not drawn & set(HANDWRITTEN_PROMPTS)


def test_a_packed_row_keeps_documents_apart() -> None:
    shape = RowShape(2048, 3)
    row = pack([blank(300, tiles=1), blank(40), blank(600)], shape)
    assert row.ids_T.shape == (2048,) and (row.ids_T[940:] == PAD).all()
    assert row.documents.tolist()[:5] == [0, 300, 340, 940, 2048]
    assert row.chunks.tolist()[:7] == [0, CHUNK, 300, 340, 340 + CHUNK, 340 + 2 * CHUNK, 940]
    assert row.positions_T[[0, 299, 300, 339, 340]].tolist() == [0, 299, 0, 39, 0]
    assert row.labels_T[297:300].tolist() == [row.ids_T[298].item(), row.ids_T[299].item(), -100]
    assert row.tiles_N3SS.shape[0] == 3 and (row.patches_P == 2047).sum() >= 32  # blank tiles go to the padding
    assert len(row.documents) == shape.documents + 1 and len(row.chunks) == shape.chunks + 1
    assert torch.equal(row.weights_T > 0, row.labels_T >= 0)


def test_a_row_takes_no_more_than_it_can_hold() -> None:
    shape = RowShape(16384, 2)
    assert shape.takes([blank(LONGEST)])
    assert not shape.takes([blank(LONGEST + 1)])  # the attention kernel is told this bound
    assert not shape.takes([blank(8192), blank(8192)])  # a token of padding must be left
    assert not shape.takes([blank(50, tiles=2), blank(50, tiles=1)])
    assert not shape.takes([blank(10)] * shape.documents)
