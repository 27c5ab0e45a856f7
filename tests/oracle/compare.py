"""Run one matrix case through the public Python API and hold it against the oracle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from remuda import LLM, SamplingParams
from tests.oracle import kit
from tests.oracle.matrix import Case

MAX_LOGPROB_DIFFERENCE = 2e-3  # the kit's limits for float32
MEAN_LOGPROB_DIFFERENCE = 1e-4


@dataclass
class Verdict:
    wrong: list[str]
    largest: float
    mean: float


def engine_of(case: Case, dtype: str = "float32", **extra: Any) -> LLM:
    starving = {"num_gpu_blocks_override": 90, "max_model_len": 320} if case.starve_cache else {}
    return LLM(
        str(kit.checkpoint(case.preset)),
        dtype=dtype,
        tensor_parallel_size=case.tp,
        pipeline_parallel_size=case.pp,
        enable_expert_parallel=case.ep,
        max_num_batched_tokens=case.chunk_tokens,
        max_num_seqs=min(32, case.chunk_tokens),
        enable_prefix_caching=case.prefix_cache,
        kv_cache_memory_bytes=64 << 20,
        **({"max_model_len": 1024} | starving | extra),
    )


def answers(llm: LLM, preset: str) -> dict[str, Any]:
    """Every prompt of the kit in one batch (token ids, texts and chats), as LLM outputs by prompt id."""
    items = kit.prompts(preset)
    plain = [item for item in items if "messages" not in item]
    chats = [item for item in items if "messages" in item]

    def params(item: dict[str, Any]) -> SamplingParams:
        return SamplingParams(temperature=0.0, max_tokens=item.get("max_tokens", 16), logprobs=5)

    prompts = [{"prompt_token_ids": i["token_ids"]} if "token_ids" in i else i["text"] for i in plain]
    outputs = llm.generate(prompts, [params(i) for i in plain], use_tqdm=False)
    messages = [kit.openai_messages(i["messages"]) for i in chats]
    outputs += llm.chat(messages, [params(i) for i in chats], use_tqdm=False)
    return {item["id"]: output for item, output in zip([*plain, *chats], outputs, strict=True)}


def judge(got: dict[str, Any], expected: dict[str, dict[str, Any]]) -> Verdict:
    wrong, differences = [], []
    for key, ref in expected.items():
        out = got[key].outputs[0]
        if list(got[key].prompt_token_ids) != ref["prompt_token_ids"]:
            wrong.append(f"{key}: prompt token ids differ")
        elif list(out.token_ids) != ref["output_token_ids"]:
            wrong.append(f"{key}: {list(out.token_ids)} instead of {ref['output_token_ids']}")
        for ours, theirs in zip(out.logprobs, ref["steps"], strict=False):
            values = {token: entry.logprob for token, entry in ours.items()}
            differences += [abs(values[token] - lp) for token, lp in theirs["top"] if token in values]
    return Verdict(wrong, max(differences), sum(differences) / len(differences))
