"""Logit adjustments of single rows, and log-probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from remuda.protocol.sampling import SamplingParams
from remuda.worker.sampling.adjust import adjust_, banned_tokens
from remuda.worker.sampling.logprobs import token_logprobs
from remuda.worker.sampling.rules import Adjustments

BASE = [1.0, -1.0, 0.5, 2.0, 0.0, -0.5]
BANNED = float("-inf")


def adjusted(prompt: list[int], output: list[int], **params: Any) -> list[float]:
    logits = torch.tensor(BASE)
    rule = Adjustments.of(SamplingParams(**params), np.array(prompt), len(BASE))
    adjust_(logits, rule, np.array(output))
    return logits.tolist()


def test_penalties() -> None:
    found = adjusted([0, 1], [3, 3, 5], repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25)
    # Repetition sees prompt and output; presence and frequency see the output only.
    assert found == pytest.approx([0.5, -2.0, 0.5, 1.0 - 0.5 - 0.5, 0.0, -1.0 - 0.5 - 0.25])


def test_counts_follow_the_output_and_grow() -> None:
    rule = Adjustments.of(SamplingParams(frequency_penalty=1.0), np.array([0]), 1000)
    output = [*range(200), 7]
    for length in (50, 100, 201):
        logits = torch.zeros(1000)
        adjust_(logits, rule, np.array(output[:length]))
    assert logits[7] == -2 and logits[0] == -1 and logits[199] == -1 and logits[200] == 0


def test_wrong_drafts_are_counted_no_more() -> None:
    rule = Adjustments.of(SamplingParams(repetition_penalty=2.0), np.array([0]), len(BASE))
    for output in ([1], [1, 3], [1, 3, 3], [1, 3, 3, 5]):  # a token, and three drafts behind it
        adjust_(torch.tensor(BASE), rule, np.array(output))
    logits = torch.tensor(BASE)
    adjust_(logits, rule, np.array([1, 2]))  # the first was wrong
    assert logits.tolist() == pytest.approx([0.5, -2.0, 0.25, 2.0, 0.0, -0.5])


def test_bias_allowed_and_min_tokens() -> None:
    assert adjusted([], [], logit_bias={2: 3.0, 4: -100.0})[2:5] == [3.5, 2.0, -100.0]
    only = adjusted([], [], allowed_token_ids=[1, 4])
    assert [value == BANNED for value in only] == [True, False, True, True, False, True]
    assert adjusted([], [1], min_tokens=2, eos_token_ids=[3], stop_token_ids=[0])[::3] == [BANNED, BANNED]
    assert adjusted([], [1, 1], min_tokens=2, eos_token_ids=[3], stop_token_ids=[0])[::3] == [1.0, 2.0]
    assert adjusted([], [], min_tokens=2, eos_token_ids=[3], ignore_eos=True)[3] == 2.0


def test_bad_words_ban_the_last_token_after_the_others() -> None:
    words = [[4], [1, 2], [5, 5, 3]]
    assert banned_tokens(words, np.array([], int)) == {4}
    assert banned_tokens(words, np.array([0, 1])) == {4, 2}
    assert banned_tokens(words, np.array([5, 5])) == {4, 3}
    assert banned_tokens(words, np.array([5])) == {4}


def test_ids_beyond_the_vocabulary_are_no_trouble() -> None:
    params = dict(bad_words_token_ids=[[77]], min_tokens=3, eos_token_ids=[99], logit_bias={50: 1.0})
    assert adjusted([], [], **params) == BASE


def test_token_logprobs() -> None:
    logits = torch.tensor([BASE, BASE[::-1]])
    expected = torch.log_softmax(logits, dim=1)
    first, second = token_logprobs(logits, torch.tensor([2, 2]), [0, 3])
    assert (first.token_ids, first.rank) == ([2], 3)
    assert (second.token_ids, second.rank) == ([2, 2, 5, 3], 1)
    assert second.logprobs == pytest.approx(expected[1][second.token_ids].tolist(), abs=1e-6)
