"""The shipped checkpoint: greedy answers as in transformers, and nearly all of them right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import remuda
from remuda import LLM, SamplingParams
from remuda.evaluation.client import drawn_messages
from remuda.evaluation.problem import Problem
from remuda.evaluation.scoring import is_right
from remuda.evaluation.skills import SKILLS, held_out_problems
from remuda.text.images import tile_image
from tests.models.reference import load_reference

DEMO = Path(remuda.__file__).parent / "assets" / "demo"
GREEDY = SamplingParams(temperature=0, max_tokens=100)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(str(DEMO), dtype="float32", max_model_len=8192, native_kernels="off") as llm:
        yield llm


def answers(llm: LLM, problems: list[Problem]) -> list[remuda.llm.RequestResult]:
    return llm.chat([drawn_messages(p.messages) for p in problems], GREEDY, use_tqdm=False)


def without_tools(skill: str, count: int) -> list[Problem]:
    """`LLM.chat` takes no tools: the pythonic form, where they are in the system message."""
    return [problem for problem in held_out_problems(skill, 3 * count, seed=11) if not problem.tools][:count]


def test_greedy_answers_equal_those_of_transformers(llm: LLM) -> None:
    problems = [problem for skill in SKILLS for problem in without_tools(skill, 1)]
    problems += [next(p for p in held_out_problems("images", 60, seed=11) if p.variant == "wide")]
    problems += [next(p for p in held_out_problems("recall", 60, seed=11) if p.variant == "2 chunks")]
    reference = load_reference(DEMO)
    for problem, result in zip(problems, answers(llm, problems), strict=True):
        scenes = [part["scene"] for m in problem.messages if not isinstance(m["content"], str) for part in m["content"]
                  if part["type"] == "scene"]  # fmt: skip
        pixels = {}
        if scenes:
            tiles = torch.from_numpy(np.concatenate([tile_image(np.asarray(s.draw()), 112, 16).tiles for s in scenes]))
            pixels["pixel_values"] = ((tiles.to(torch.bfloat16) * (1 / 255) - 0.5) / 0.5).float()
        prompt = torch.tensor([result.prompt_token_ids])
        with torch.no_grad():
            out = reference.generate(input_ids=prompt, do_sample=False, max_new_tokens=100, **pixels)
        expected = out[0, prompt.shape[1] :].tolist()
        ours = result.outputs[0].token_ids
        assert ours == expected[: len(ours)] and len(expected) - len(ours) <= 1, problem.messages[-1]  # <|eot|>


def test_every_skill_answers_nearly_all_right(llm: LLM) -> None:
    for skill in SKILLS:
        problems = without_tools(skill, 12)
        right = [is_right(p, r.outputs[0].text) for p, r in zip(problems, answers(llm, problems), strict=True)]
        assert sum(right) >= 0.85 * len(right), (skill, right)
