"""The death of a rank that has a GPU: named, soon, and nothing stays on the cards."""

from __future__ import annotations

import os
import threading
import time

import pytest
import torch

from remuda import LLM, SamplingParams
from remuda.planner.gpus import visible_gpus
from remuda.protocol.errors import ReplicaDied
from tests.processes import descendants, titled, wait_until, wait_until_gone

LAYOUTS = [(tp, pp) for tp, pp in ((2, 1), (1, 2)) if torch.cuda.device_count() >= tp * pp]
_SLACK_BYTES = 64 << 20
_WITHIN_S = 5.0


@pytest.mark.parametrize(("tp", "pp"), LAYOUTS)
def test_a_killed_rank_ends_all_and_leaves_nothing_on_the_cards(tp: int, pp: int) -> None:
    before = [gpu.free_bytes for gpu in visible_gpus()]
    params = SamplingParams(temperature=0.0, max_tokens=500, ignore_eos=True)
    with LLM(
        None, device="cuda", tensor_parallel_size=tp, pipeline_parallel_size=pp, max_model_len=1024,
        kv_cache_memory_bytes=256 << 20,
    ) as llm:  # fmt: skip
        llm.generate(["One"], params, use_tqdm=False)
        family = descendants(os.getpid())
        victim = titled(f"remuda: rank 1 tp{tp - 1} pp{pp - 1}")
        killed_s: list[float] = []

        def kill() -> None:
            killed_s.append(time.monotonic())
            victim.kill()

        threading.Timer(0.5, kill).start()
        with pytest.raises(ReplicaDied, match="rank 1 on node 0 was killed by SIGKILL"):
            for _ in range(200):
                llm.generate(["One", "Two"], params, use_tqdm=False)
        deadline = killed_s[0] + _WITHIN_S
        wait_until_gone(family, deadline - time.monotonic())
        wait_until(lambda: not in_use(before), deadline - time.monotonic(), "memory of the dead on the cards")


def in_use(before: list[int]) -> bool:
    """Whether less is free on some card than `before`."""
    return any(now.free_bytes < then - _SLACK_BYTES for now, then in zip(visible_gpus(), before, strict=True))
