"""Sampling on a device against sampling on the host: the same tokens and log-probabilities for every parameter."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from remuda.kernels.head.torch import greedy_keys, of_greedy_keys
from remuda.kernels.select import torch_table
from remuda.parallel.collectives import SingleRank
from remuda.protocol.request import TokenLogprobs
from remuda.protocol.sampling import SamplingParams
from remuda.protocol.step import NewSequence, StepPlan
from remuda.worker.cpu.sampler import Sampler
from remuda.worker.cuda.adjust import Adjustment
from remuda.worker.cuda.resident import ResidentBatch
from remuda.worker.cuda.sampler import DeviceSampler
from remuda.worker.kv_pool import KVPool
from remuda.worker.sampling.adjust import adjust_
from remuda.worker.sampling.rules import Adjustments
from remuda.worker.state import BatchState, Rows
from tests.worker.host_device import HostDevice

VOCAB, PROMPT, OUTPUT = 60, [3, 7, 7, 50], [9, 7, 12]
ASKED = [
    {"presence_penalty": 0.7},
    {"frequency_penalty": -0.4, "repetition_penalty": 1.3},
    {"logit_bias": {5: 3.0, 59: -2.0}},
    {"allowed_token_ids": [1, 2, 9, 30]},
    {"bad_words_token_ids": [[12, 20], [21], [5, 6, 7]]},
    {"min_tokens": 5, "eos_token_ids": [11], "stop_token_ids": [13]},
    {"min_tokens": 2, "eos_token_ids": [11], "presence_penalty": 0.1},
]


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_adjusted_logits_are_those_of_the_host(asked: dict) -> None:
    params = SamplingParams(**asked)
    logits_V = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1))
    expected_V, got_V = logits_V.clone(), logits_V.clone()
    rule = Adjustments.of(params, np.array(PROMPT), VOCAB)
    adjust_(expected_V, rule, np.array(OUTPUT))
    adjustment = Adjustment.of(params, VOCAB, HostDevice())
    assert adjustment is not None
    adjustment.apply_(got_V, torch.tensor(PROMPT + OUTPUT), len(PROMPT))
    torch.testing.assert_close(got_V, expected_V)
    assert not torch.equal(expected_V, logits_V) or asked.get("min_tokens") == 2


def test_a_sequence_that_asks_for_nothing_needs_no_adjustment() -> None:
    assert Adjustment.of(SamplingParams(temperature=0.5, top_k=3), VOCAB, HostDevice()) is None


@pytest.mark.parametrize("seed", range(4))
def test_mixed_rows_get_the_tokens_and_logprobs_of_the_host(seed: int) -> None:
    rng = np.random.default_rng(seed)
    asked = [
        {"temperature": 0.0}, {"temperature": 0.0, "logprobs": 3}, {"temperature": 1.0, "seed": 5, "logprobs": 0},
        {"temperature": 0.7, "seed": 9, "top_k": 4}, {"temperature": 1.3, "seed": 2, "top_p": 0.6, "min_p": 0.02},
        {"temperature": 0.0, **ASKED[seed]}, {"temperature": 0.9, "seed": 77, **ASKED[seed + 1]},
    ]  # fmt: skip
    state = BatchState(len(asked), 32, 1, 4)
    tokens = [rng.integers(0, VOCAB, 6).tolist() for _ in asked]
    plan = StepPlan(0, list(range(len(asked))), [6] * len(asked), new=[
        NewSequence(slot, ids, 4, 0, [[1, 2]], SamplingParams(**params))
        for slot, (ids, params) in enumerate(zip(tokens, asked, strict=True))
    ])  # fmt: skip
    state.apply(plan)
    rows = state.rows(plan)
    logits_SV = torch.randn(len(asked), VOCAB, generator=torch.Generator().manual_seed(seed))
    host_tokens_S, host_logprobs = on_host(plan, rows, state, logits_SV)
    device = HostDevice()
    pool = KVPool.__new__(KVPool)  # a sampler looks at no pages
    resident = ResidentBatch(device, state, pool, torch_table())
    resident.admit(plan)
    sampler = DeviceSampler(
        device,
        torch_table(),
        Head(logits_SV),
        SingleRank(),
        resident,
        len(asked),
        VOCAB,  # type: ignore[arg-type]
    )
    sampler.admit(plan)
    wanted = sampler.foresee(rows)
    assert not wanted.all_plain
    tokens_S, answer = sampler.choose(logits_SV, wanted)
    assert tokens_S.tolist() == answer.tokens_S.tolist() == host_tokens_S
    assert_same_logprobs(answer.as_result(0, None).logprobs, host_logprobs)


class Head:
    vocab_shard = (0, VOCAB)

    def __init__(self, logits_SV: torch.Tensor) -> None:
        self._logits_SV = logits_SV

    def logits(self, hidden_SH: torch.Tensor) -> torch.Tensor:
        return self._logits_SV


def on_host(
    plan: StepPlan, rows: Rows, state: BatchState, logits_SV: torch.Tensor
) -> tuple[list[int], list[TokenLogprobs | None]]:
    tokens_NL = np.zeros((state.slots, state.capacity), np.int32)
    for sequence in plan.new:
        tokens_NL[sequence.slot, : len(sequence.token_ids)] = sequence.token_ids
    sampler = Sampler(Head(logits_SV), SingleRank(), tokens_NL, VOCAB)  # type: ignore[arg-type]
    sampler.admit(plan)
    sampled = sampler.run(torch.zeros(rows.total_tokens, 1), sampler.foresee(rows))
    return sampled.tokens_S.tolist(), sampled.logprobs


def assert_same_logprobs(got: list[TokenLogprobs | None], expected: list[TokenLogprobs | None]) -> None:
    assert [entry is None for entry in got] == [entry is None for entry in expected]
    for mine, theirs in zip(got, expected, strict=True):
        if mine is not None and theirs is not None:
            assert (mine.token_ids, mine.rank) == (theirs.token_ids, theirs.rank)
            assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)


def test_greedy_keys_order_values_then_lower_ids() -> None:
    value_S = torch.tensor([-3.5, 2.0, 0.0, -0.0, float("-inf"), float("inf"), float("nan")])
    key_S = greedy_keys(value_S, torch.arange(7))
    got_S, id_S = of_greedy_keys(key_S)
    torch.testing.assert_close(got_S, value_S, equal_nan=True)
    assert id_S.tolist() == list(range(7)) and 0 not in key_S.tolist()
    equal = greedy_keys(torch.tensor([1.0, 1.0]), torch.tensor([40, 12]))
    assert equal[1] > equal[0]
    assert key_S.argsort().tolist() == [4, 0, 3, 2, 1, 5, 6]
