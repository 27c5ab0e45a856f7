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
    p99: float
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


def _first_difference(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def divergences(got: dict[str, Any], expected: dict[str, dict[str, Any]]) -> list[float]:
    """For every prompt whose tokens differ: the reference's lead of its best token over the next at that position."""
    leads = []
    for key, ref in expected.items():
        ours, theirs = list(got[key].outputs[0].token_ids), ref["output_token_ids"]
        assert list(got[key].prompt_token_ids) == ref["prompt_token_ids"], key
        if ours != theirs:
            at = _first_difference(ours, theirs)
            leads.append(ref["steps"][at]["gap"] if at < len(ref["steps"]) else float("inf"))
    return leads


def judge(got: dict[str, Any], expected: dict[str, dict[str, Any]]) -> Verdict:
    """Wrong prompts, and differences of the reference's top log-probabilities up to the first divergence."""
    wrong, differences = [], []
    for key, ref in expected.items():
        out = got[key].outputs[0]
        ours, theirs = list(out.token_ids), ref["output_token_ids"]
        if list(got[key].prompt_token_ids) != ref["prompt_token_ids"]:
            wrong.append(f"{key}: prompt token ids differ")
        elif ours != theirs:
            wrong.append(f"{key}: {ours} instead of {theirs}")
        comparable = _first_difference(ours, theirs) + 1
        for mine, step in list(zip(out.logprobs, ref["steps"], strict=False))[:comparable]:
            values = {token: entry.logprob for token, entry in mine.items()}
            differences += [abs(values[token] - lp) for token, lp in step["top"] if token in values]
    differences.sort()
    p99 = differences[int(0.99 * (len(differences) - 1))]
    return Verdict(wrong, differences[-1], p99, sum(differences) / len(differences))


def faults(case: Case, verdicts: list[Verdict], stats: Any) -> list[str]:
    """What of the kit's demands a float32 run missed, and whether the engine did what the case is about."""
    missed = [line for v in verdicts for line in v.wrong]
    checks = (
        (max(v.largest for v in verdicts) <= MAX_LOGPROB_DIFFERENCE, "a log-probability is too far off"),
        (max(v.mean for v in verdicts) <= MEAN_LOGPROB_DIFFERENCE, "log-probabilities are too far off on average"),
        (stats.kv_pages_used == 0, f"{stats.kv_pages_used} KV pages are still allocated"),
        (not case.starve_cache or stats.preemptions > 0, "nothing was preempted"),
        (not case.prefix_cache or case.starve_cache or stats.prefix_hits_tokens > 0, "the prefix cache was never hit"),
    )
    return missed + [text for holds, text in checks if not holds]
