"""What engines on GPUs are asked, and how their answers are held against the processor's.

Tiny checkpoints have attention chunks of 64 tokens: prompts begin and answers cross them at their borders.
"""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from remuda import LLM, SamplingParams

BORDERS = (1, 3, 40, 62, 63, 64, 65, 127, 128, 129, 300)  # tokens of a prompt
Results = list[Any]
Workload = Callable[[LLM], Results]


def prompts(lengths: Sequence[int], seed: int) -> list[dict[str, list[int]]]:
    rng = random.Random(seed)
    return [{"prompt_token_ids": [rng.randrange(110, 240) for _ in range(length)]} for length in lengths]


def greedy(llm: LLM) -> Results:
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, logprobs=5)
    return llm.generate(prompts(BORDERS, 1), params, use_tqdm=False)


def crowd(llm: LLM) -> Results:
    """Many requests that come and go, so that batches have all sizes."""
    lengths = [1 + 5 * i % 90 for i in range(40)]
    params = [SamplingParams(temperature=0.0, max_tokens=2 + 7 * i % 31, ignore_eos=True) for i in range(40)]
    return llm.generate(prompts(lengths, 2), params, use_tqdm=False)


def drawn(llm: LLM) -> Results:
    """Seeded, with every way to narrow the choice, greedy rows among them."""
    choices = ({"top_p": 0.9}, {"top_k": 20}, {"min_p": 0.02}, {"temperature": 1.3, "top_k": 50, "top_p": 0.8}, {})
    params = [
        SamplingParams(**({"temperature": 0.8} | choice), seed=seed, max_tokens=20, ignore_eos=True)
        for seed in (5, -9, 1 << 40)
        for choice in choices
    ]
    params[4] = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    return llm.generate(prompts([3 + 9 * i for i in range(len(params))], 3), params, use_tqdm=False)


def adjusted(llm: LLM) -> Results:
    """Everything that changes logits."""
    wishes: tuple[dict[str, Any], ...] = (
        {"presence_penalty": 1.5}, {"frequency_penalty": 0.7}, {"repetition_penalty": 1.3},
        {"min_tokens": 12, "stop_token_ids": list(range(100, 200))}, {"logit_bias": {150: 6.0, 151: -100.0}},
        {"allowed_token_ids": [120, 130, 140, 150]}, {"bad_words": ["run", "our"]}, {"logprobs": 20},
        {"presence_penalty": 0.4, "repetition_penalty": 1.1, "temperature": 0.9, "seed": 3, "logprobs": 2},
    )  # fmt: skip
    params = [SamplingParams(**({"temperature": 0.0, "max_tokens": 20} | wish)) for wish in wishes]
    return llm.generate(prompts([20] * len(params), 4), params, use_tqdm=False)


def prompt_logprobs(llm: LLM) -> Results:
    params = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True, prompt_logprobs=3)
    return llm.generate(prompts((2, 65, 130, 200), 5), params, use_tqdm=False)


def images(llm: LLM) -> Results:
    """Of one tile and of several, among text."""
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, logprobs=5)
    sizes = ((60, 60), (200, 90), (90, 260))
    return llm.chat([_about_a_picture(size) for size in sizes], params, use_tqdm=False)


def _about_a_picture(size: tuple[int, int]) -> list[dict[str, Any]]:
    picture = Image.effect_mandelbrot(size, (-2.0, -1.2, 1.0, 1.2), 60).convert("RGB")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}},
                                         {"type": "text", "text": "What is this?"}]}]  # fmt: skip


QUESTIONS = (
    "What is 47 x 36?", "Sort these words: pear, apple, cherry", "Spell the word giraffe backwards.",
    "What is 12 + 30?", "Count the letters in banana.",
)  # fmt: skip


def questions(llm: LLM) -> Results:
    """To a model that has learned to answer."""
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    return llm.chat(chats, SamplingParams(temperature=0.0, max_tokens=48, logprobs=5), use_tqdm=False)


def drawn_answers(llm: LLM) -> Results:
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    params = [SamplingParams(temperature=1.0, top_p=0.95, seed=seed, max_tokens=40) for seed in range(len(chats))]
    return llm.chat(chats, params, use_tqdm=False)


@dataclass(frozen=True)
class Limits:
    """How far an answer may be from the processor's in float32."""

    lead: float  # tokens may differ where the likeliest led by less than this, in log-probability
    largest: float  # difference of a log-probability, up to the first token that differs
    mean: float
    within: float = 0.99  # the share of log-probabilities that `largest` holds for: a token may go to another expert


EXACT = Limits(0.0, 2e-3, 1e-4, within=1.0)
BFLOAT16 = Limits(0.5, 0.5, 0.10)
FLOAT8 = Limits(0.8, 1.0, 0.15)  # activations are rounded to float8, too


def faults(name: str, got: Results, expected: Results, limits: Limits) -> list[str]:
    """What of a workload is not as it should be."""
    wrong: list[str] = []
    differences: list[float] = []
    for index, (one, reference) in enumerate(zip(got, expected, strict=True)):
        mine, theirs = one.outputs[0], reference.outputs[0]
        at = _first_difference(mine.token_ids, theirs.token_ids)
        if at is not None and _lead(theirs.logprobs, at) >= limits.lead:
            wrong.append(
                f"{name} {index}: from token {at} on {mine.token_ids[at:][:4]}, not {theirs.token_ids[at:][:4]}"
            )
        length = len(theirs.token_ids) if at is None else at + 1
        differences += _differences((mine.logprobs or [])[:length], (theirs.logprobs or [])[:length])
        differences += _differences((one.prompt_logprobs or [])[1:], (reference.prompt_logprobs or [])[1:])
    differences.sort()
    if differences and (far := differences[int(limits.within * (len(differences) - 1))]) > limits.largest:
        wrong.append(f"{name}: a log-probability is off by {far:.2g}")
    if differences and sum(differences) / len(differences) > limits.mean:
        wrong.append(f"{name}: log-probabilities are off by {sum(differences) / len(differences):.2g} on average")
    return wrong


def _first_difference(a: list[int], b: list[int]) -> int | None:
    if a == b:
        return None
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _lead(positions: list[dict[int, Any]] | None, at: int) -> float:
    """Of the likeliest token over the next; infinite where that is not known."""
    if not positions or at >= len(positions):
        return float("inf")
    best = sorted((entry.logprob for entry in positions[at].values()), reverse=True)
    return best[0] - best[1] if len(best) > 1 else float("inf")


def _differences(mine: list[Any], theirs: list[Any]) -> list[float]:
    return [
        abs(a[token].logprob - b[token].logprob)
        for a, b in zip(mine, theirs, strict=True)
        for token in a.keys() & b.keys()
        if b[token].logprob > -20.0  # not those of tokens that have been made impossible
    ]
