"""Which models run on GPUs in which layouts, and what is asked of each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from remuda import LLM
from tests.gpu import workloads
from tests.gpu.workloads import BFLOAT16, EXACT, FLOAT8, Limits, Workload

DEVICE = "cuda"


@dataclass(frozen=True)
class Case:
    """One engine. `plain`: decode kernel by kernel, prompts in chunks of 48 tokens, no prefix cache."""

    model: str  # a kind of tiny checkpoint, or demo
    dtype: str = "float32"
    tp: int = 1
    pp: int = 1
    ep: bool = False
    plain: bool = False

    def __str__(self) -> str:
        extras = [name for name, on in (("ep", self.ep), ("plain", self.plain)) if on]
        return "-".join([self.model, self.dtype, f"tp{self.tp}", f"pp{self.pp}", *extras])

    @property
    def limits(self) -> Limits:
        if self.model.endswith("fp8"):
            return FLOAT8
        return EXACT if self.dtype == "float32" else BFLOAT16

    @property
    def workloads(self) -> dict[str, Workload]:
        """By name. Tokens that are drawn are compared in float32 alone."""
        exact = self.limits is EXACT
        if self.model == "demo":
            asked = {"questions": workloads.questions, "questions again": workloads.questions}
            return asked | ({"drawn answers": workloads.drawn_answers} if exact else {})
        asked = {"greedy": workloads.greedy, "again": workloads.greedy, "prompts": workloads.prompt_logprobs}
        if exact:
            asked |= {"crowd": workloads.crowd, "drawn": workloads.drawn, "adjusted": workloads.adjusted}
        return asked | ({"images": workloads.images} if self.model.startswith(("maverick", "scout")) else {})


def _layouts() -> Iterator[Case]:
    for tp, pp in ((2, 1), (1, 2), (4, 1), (2, 2), (1, 4)):
        yield Case("maverick", tp=tp, pp=pp)
        yield Case("demo", "float32", tp, pp)
        yield Case("demo", "bfloat16", tp, pp)
    yield Case("maverick", tp=2, ep=True)
    yield Case("maverick", tp=4, ep=True)
    yield Case("maverick", tp=2, pp=2, plain=True)
    yield Case("maverick-fp8", "bfloat16", 2, 2)
    yield Case("scout", tp=2, pp=2)
    yield Case("scout", "bfloat16", 4)
    yield Case("qwen3-moe", tp=2, ep=True)
    yield Case("llama3", pp=4)


CASES = (
    Case("maverick"),
    Case("maverick", plain=True),
    Case("maverick", "bfloat16"),
    Case("maverick-fp8", "bfloat16"),
    Case("scout"),
    Case("scout", "bfloat16", plain=True),
    Case("llama3"),
    Case("llama3", "bfloat16"),
    Case("qwen3"),
    Case("qwen3-moe"),
    Case("qwen3-moe", "bfloat16"),
    Case("demo"),
    Case("demo", "bfloat16"),
    *_layouts(),
)


def cases_here() -> list[Case]:
    """Those that this machine has enough cards for."""
    return [case for case in CASES if case.tp * case.pp <= torch.cuda.device_count()]


@contextmanager
def engine_of(case: Case, path: str | None) -> Iterator[LLM]:
    """The engine of a case, its ranks in processes of their own: what goes wrong in one ends with it."""
    plain = {"enforce_eager": True, "max_num_batched_tokens": 48, "enable_prefix_caching": False} if case.plain else {}
    with LLM(
        path, device=DEVICE, dtype=case.dtype, tensor_parallel_size=case.tp, pipeline_parallel_size=case.pp,
        enable_expert_parallel=case.ep, distributed_executor_backend="mp", max_model_len=1024, max_num_seqs=32,
        kv_cache_memory_bytes=128 << 20, **plain,
    ) as llm:  # fmt: skip
        yield llm
