"""The shipped checkpoint: greedy answers as in transformers, and nearly all of them right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import remuda
from remuda import LLM, SamplingParams
from remuda.evaluation.scoring import is_right
from remuda.evaluation.skills import SKILLS
from remuda.text.images import tile_image
from tests.models.reference import load_reference, reference_logits, transformers
from training.problems.held_out import held_out_problems
from training.problems.problem import Problem

DEMO = Path(remuda.__file__).parent / "assets" / "demo"


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(str(DEMO), dtype="float32", max_model_len=8192, native_kernels="off") as llm:
        yield llm


def answers(llm: LLM, problems: list[Problem], **sampling: int) -> list[remuda.llm.RequestResult]:
    greedy = SamplingParams(temperature=0, max_tokens=100, **sampling)  # type: ignore[arg-type]
    return llm.chat([p.stored().messages for p in problems], greedy, use_tqdm=False)


def without_tools(skill: str, count: int) -> list[Problem]:
    """`LLM.chat` takes no tools: the pythonic form, where they are in the system message."""
    return [problem for problem in held_out_problems(skill, 3 * count, seed=11) if not problem.tools][:count]


def test_greedy_answers_equal_those_of_transformers(llm: LLM) -> None:
    """So do the probabilities of all tokens: answers alone survive a wrong chunk size or a lost attention head."""
    problems = [problem for skill in SKILLS for problem in without_tools(skill, 1)]
    for skill, variant in ("images", "wide"), ("images", "compare"), ("recall", "2 chunks"), ("recall", "4 chunks"):
        problems += [next(p for p in held_out_problems(skill, 60, seed=11) if p.variant == variant)]
    tokenizer, reference = transformers.AutoTokenizer.from_pretrained(DEMO), load_reference(DEMO)
    for problem, result in zip(problems, answers(llm, problems, logprobs=0, prompt_logprobs=0), strict=True):
        scenes = [part["scene"] for m in problem.messages if not isinstance(m["content"], str) for part in m["content"]
                  if part["type"] == "scene"]  # fmt: skip
        pixels, prompt, reply = None, result.prompt_token_ids, result.outputs[0]
        if scenes:
            tiles = torch.from_numpy(np.concatenate([tile_image(np.asarray(s.draw()), 112, 16).tiles for s in scenes]))
            pixels = ((tiles.to(torch.bfloat16) * (1 / 255) - 0.5) / 0.5).float()
        else:
            theirs = tokenizer.apply_chat_template(list(problem.messages), add_generation_prompt=True)
            assert prompt == theirs["input_ids"]
        with torch.no_grad():
            images = {} if pixels is None else {"pixel_values": pixels}
            out = reference.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=100, **images)
        expected = out[0, len(prompt) :].tolist()
        assert reply.token_ids == expected[: len(reply.token_ids)], problem.messages[-1]
        assert len(expected) - len(reply.token_ids) <= 1  # <|eot|>
        assert reply.text == tokenizer.decode(expected, skip_special_tokens=True)

        ids = prompt + reply.token_ids
        logprobs = reference_logits(reference, ids, pixels).log_softmax(-1)
        positions = [*(result.prompt_logprobs or ()), *(reply.logprobs or ())][1:]
        ours = [position[token].logprob for position, token in zip(positions, ids[1:], strict=True) if position]
        assert len(ours) == len(ids) - 1
        torch.testing.assert_close(
            torch.tensor(ours), logprobs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])], atol=2e-3, rtol=1e-3
        )


def test_every_skill_answers_nearly_all_right(llm: LLM) -> None:
    for skill in SKILLS:
        problems = without_tools(skill, 8)
        right = [is_right(p.stored(), r.outputs[0].text) for p, r in zip(problems, answers(llm, problems), strict=True)]
        assert sum(right) >= 0.85 * len(right), (skill, right)
