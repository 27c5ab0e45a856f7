"""Drafts through processes, shards and stages: the answers are those without them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from remuda import LLM, SamplingParams
from remuda.engine.sequence import Sequence
from remuda.llm import RequestResult

PROMPTS = ["Once upon a time", "number 7", "The quick brown fox jumps", "a"]
SAMPLING = [
    SamplingParams(temperature=0, max_tokens=20, ignore_eos=True),
    SamplingParams(temperature=1.0, seed=3, max_tokens=20, ignore_eos=True, logprobs=1),
    SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, repetition_penalty=1.3),
    SamplingParams(temperature=0.7, top_p=0.9, seed=4, max_tokens=20, ignore_eos=True, presence_penalty=0.5),
]


class Hindsight:
    """Proposes what was answered before, sometimes with a mistake."""

    def __init__(self, answers: list[RequestResult]) -> None:
        self._rng = random.Random(5)
        self._answers = {tuple(a.prompt_token_ids): a.prompt_token_ids + a.outputs[0].token_ids for a in answers}
        self.right = self.wrong = 0

    def propose(self, seq: Sequence, most: int) -> list[int]:
        drafts = self._answers[tuple(seq.request.prompt_token_ids)][len(seq.token_ids) :][: self._rng.randint(0, 4)]
        if drafts and self._rng.random() < 0.4:
            drafts[-1] += 1 if drafts[-1] < 100 else -1
            self.wrong += 1
        self.right += len(drafts) > 0
        return drafts


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 2)])
def test_answers_do_not_change_and_come_in_fewer_steps(tp: int, pp: int, tiny_maverick: Path) -> None:
    with LLM(
        str(tiny_maverick), dtype="float32", max_model_len=128, native_kernels="off", tensor_parallel_size=tp,
        pipeline_parallel_size=pp, enable_prefix_caching=False,
    ) as llm:  # fmt: skip
        plain = llm.generate(PROMPTS, SAMPLING, use_tqdm=False)
        steps = llm.stats().steps
        llm._core.scheduler.drafter = drafter = Hindsight(plain)
        drafted = llm.generate(PROMPTS, SAMPLING, use_tqdm=False)
        drafted_steps = llm.stats().steps - steps
    assert drafter.right > 10 and drafter.wrong > 5
    for one, other in zip(plain, drafted, strict=True):
        assert one.outputs[0].token_ids == other.outputs[0].token_ids
        assert one.outputs[0].text == other.outputs[0].text
        for entry, again in zip(one.outputs[0].logprobs or (), other.outputs[0].logprobs or (), strict=True):
            assert entry.keys() == again.keys()
            for token, found in entry.items():
                assert again[token].logprob == pytest.approx(found.logprob, abs=1e-4)
    if pp == 1:  # with more stages, sequences that run in several cohorts take turns otherwise
        assert drafted_steps < 0.7 * steps
