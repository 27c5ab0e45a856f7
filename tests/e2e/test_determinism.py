"""A seeded request gives the same tokens alone, in a batch, preempted, and under every layout (float32)."""

from __future__ import annotations

from pathlib import Path

import pytest

from remuda import LLM, SamplingParams

PROMPT = list(range(40, 90))
SEEDED = SamplingParams(temperature=0.9, top_p=0.95, top_k=200, seed=1234, max_tokens=24, ignore_eos=True)
LAYOUTS = [(1, 1, False), (2, 1, True), (1, 3, False), (2, 2, False), (4, 2, True)]


def crowd(count: int) -> list[dict[str, list[int]]]:
    return [{"prompt_token_ids": [(7 * i + j) % 900 + 20 for j in range(20 + i)]} for i in range(count)]


@pytest.fixture(scope="module")
def alone(tiny_maverick: Path) -> list[int]:
    with LLM(str(tiny_maverick), dtype="float32", max_model_len=256) as llm:
        return list(llm.generate([{"prompt_token_ids": PROMPT}], SEEDED, use_tqdm=False)[0].outputs[0].token_ids)


@pytest.mark.parametrize(("tp", "pp", "ep"), LAYOUTS)
@pytest.mark.parametrize("pages", [None, 120])
def test_seeded_tokens_depend_on_nothing_but_seed_and_prompt(
    tiny_maverick: Path, alone: list[int], tp: int, pp: int, ep: bool, pages: int | None
) -> None:
    with LLM(
        str(tiny_maverick), dtype="float32", max_model_len=256, tensor_parallel_size=tp, pipeline_parallel_size=pp,
        enable_expert_parallel=ep, num_gpu_blocks_override=pages, max_num_seqs=16,
    ) as llm:  # fmt: skip
        prompts = [*crowd(8), {"prompt_token_ids": PROMPT}, *crowd(7)]
        others = SamplingParams(temperature=1.0, max_tokens=24, ignore_eos=True)
        outputs = llm.generate(prompts, [others] * 8 + [SEEDED] + [others] * 7, use_tqdm=False)
        assert list(outputs[8].outputs[0].token_ids) == alone
        assert (llm.stats().preemptions > 0) == (pages is not None)
