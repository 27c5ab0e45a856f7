"""A real model on CPU: a request that was cut at any token and goes on elsewhere ends with exactly the same tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from remuda.config.arguments import OFFLINE_FLAGS
from remuda.config.parser import options_from_keywords
from remuda.engine.input import InputProcessor
from remuda.launch.local import LocalReplica
from remuda.launch.resolve import engine_config
from remuda.protocol.request import EngineRequest
from remuda.protocol.sampling import SamplingParams
from tests.engine.fakes import Outcome, run_to_end

PROMPT = [40 + 7 * i % 60 for i in range(37)]
LENGTH = 14
PENALTIES = {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.3}


@pytest.fixture(scope="module")
def replica(tiny_maverick: Path) -> Iterator[LocalReplica]:
    options = options_from_keywords(OFFLINE_FLAGS, {
        "dtype": "float32", "max_model_len": 128, "max_num_batched_tokens": 24, "max_num_seqs": 24,
        "distributed_executor_backend": "inproc", "native_kernels": "off",
    })  # fmt: skip
    with LocalReplica(engine_config(options | {"model": str(tiny_maverick)})) as running:
        yield running


def finish(replica: LocalReplica, requests: list[EngineRequest]) -> list[Outcome]:
    outcomes = run_to_end(replica.core, requests)
    return [outcomes[request.request_id] for request in requests]


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"temperature": 1.0, "seed": 77, "top_p": 0.9, "top_k": 300},
        {"temperature": 0.0, **PENALTIES},
        {"temperature": 1.3, "seed": 5, "logprobs": 3, "prompt_logprobs": 1, **PENALTIES},
    ],
    ids=["greedy", "seeded", "penalties", "seeded, penalties, logprobs"],
)
def test_it_ends_with_the_same_tokens(replica: LocalReplica, sampling: dict[str, Any]) -> None:
    params = SamplingParams(max_tokens=LENGTH, min_tokens=LENGTH // 2, **sampling)
    input_processor = InputProcessor(replica.core.config.model, None, 128)
    (request,) = input_processor.requests("whole", PROMPT, params)
    (whole,) = finish(replica, [request])
    assert whole.final is not None and len(whole.token_ids) >= LENGTH // 2
    cuts = [
        msgspec.structs.replace(request, request_id=f"after {count}", emitted_token_ids=whole.token_ids[:count])
        for count in range(len(whole.token_ids))
    ]
    for count, rest in enumerate(finish(replica, cuts)):
        assert rest.token_ids == whole.token_ids[count:]
        assert rest.final is not None and rest.final.finish_reason == whole.final.finish_reason
        for mine, theirs in zip(rest.logprobs, whole.logprobs[count:], strict=True):
            assert mine.token_ids == theirs.token_ids and mine.rank == theirs.rank
            assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
