"""The sampler as the worker calls it: mixed batches, reproducibility, and the vocabulary cut over TP ranks."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from remuda.parallel.collectives import SingleRank
from remuda.protocol.sampling import SamplingParams
from remuda.protocol.step import NewSequence, StepPlan
from remuda.worker.cpu.sampler import Sampled, Sampler
from remuda.worker.state import BatchState

VOCAB = 101  # TP 4 pads it to 104


@dataclass
class Head:
    """Hidden states are the logits themselves."""

    vocab_shard: tuple[int, int]

    def logits(self, hidden_SH: torch.Tensor) -> torch.Tensor:
        start, stop = self.vocab_shard
        padded = torch.nn.functional.pad(hidden_SH, (0, 104 - VOCAB), value=float("-inf"))
        return padded[:, start:stop].clone()


class ThreadRanks:
    """Collectives among threads that stand for TP ranks."""

    def __init__(self, rank: int, box: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size, self._box, self._barrier = rank, len(box), box, barrier

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        self._box[self.rank] = x
        self._barrier.wait(10)
        gathered = torch.stack(self._box)
        self._barrier.wait(10)
        return gathered

    def gather(self, x: torch.Tensor) -> torch.Tensor | None:
        gathered = self.all_gather(x)
        return None if self.rank else gathered


PARAMS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0, seed=5),
    SamplingParams(temperature=0.0, logprobs=3),
    SamplingParams(temperature=0.7, seed=6, top_k=20, top_p=0.8, logprobs=0),
    SamplingParams(temperature=0.0, repetition_penalty=1.5, min_tokens=2, eos_token_ids=[0]),
    SamplingParams(temperature=1.3, seed=-7, min_p=0.05, presence_penalty=1.0),
    SamplingParams(temperature=0.0, min_tokens=1, eos_token_ids=[1]),
    SamplingParams(temperature=0.9, seed=8, allowed_token_ids=[4, 9, 16], logit_bias={9: 2.0}),
]
Case = tuple[int, SamplingParams]  # the number picks the logits of the sequence
CASES: list[Case] = list(enumerate(PARAMS))


def run_steps(tp_rank: int, comm: Any, tp: int, cases: list[Case], slots: list[int], steps: int = 6) -> list[Sampled]:
    """Each sequence keeps its own logits, a function of (sequence, step), whatever its slot and its neighbours."""
    shard = 104 // tp
    state = BatchState(len(slots) + max(slots), 64, groups=1, block_size=4)
    head: Any = Head((tp_rank * shard, (tp_rank + 1) * shard) if tp > 1 else (0, VOCAB))
    tokens_NL = np.zeros((state.slots, state.capacity), np.int32)
    sampler = Sampler(head, comm, tokens_NL, VOCAB)
    new = [NewSequence(slot, [1, 2, 3 + n], 3, 0, [[]], p) for slot, (n, p) in zip(slots, cases, strict=True)]
    found = []
    for step in range(steps):
        plan = StepPlan(step, slots, [3 if step == 0 else 1] * len(slots), new=[] if step else new)
        state.apply(plan)
        for sequence in plan.new:
            tokens_NL[sequence.slot, : len(sequence.token_ids)] = sequence.token_ids
        sampler.admit(plan)
        rows = state.rows(plan)
        generators = [torch.Generator().manual_seed(100 * number + step) for number, _ in cases]
        last = torch.stack([torch.randn(VOCAB, generator=generator) * 2 for generator in generators])
        hidden = last if step else last.repeat_interleave(3, dim=0)
        sampled = sampler.run(hidden, sampler.foresee(rows))
        state.advance(rows, plan.step)
        tokens_NL[rows.chosen_slots_C, rows.chosen_positions_C] = sampled.tokens_S
        found.append(sampled)
    return found


def single(cases: list[Case], slots: list[int]) -> list[Sampled]:
    return run_steps(0, SingleRank(), 1, cases, slots)


def tokens_of(found: list[Sampled], row: int) -> list[int]:
    return [int(sampled.tokens_S[row]) for sampled in found]


def test_tokens_are_the_same_alone_and_in_a_batch_in_any_slot() -> None:
    together = single(CASES, [3, 1, 0, 7, 5, 2, 6, 4])
    for row, case in enumerate(CASES):
        assert tokens_of(single([case], [0]), 0) == tokens_of(together, row), case


def test_logprobs_are_given_to_those_who_asked() -> None:
    for sampled in single(CASES, list(range(8))):
        assert [entry is not None for entry in sampled.logprobs] == [p.logprobs is not None for p in PARAMS]
        assert [len(entry.token_ids) for entry in sampled.logprobs if entry] == [4, 1]
        assert all(entry.token_ids[0] == sampled.tokens_S[row] for row, entry in enumerate(sampled.logprobs) if entry)
    assert single(CASES[:2], [0, 1])[0].logprobs == []


def test_rules_are_kept() -> None:
    found = single(CASES, list(range(8)))
    assert set(tokens_of(found, 7)) <= {4, 9, 16}
    assert 0 not in tokens_of(found, 4)[:2] and tokens_of(found, 6)[0] != 1


def test_other_seeds_give_other_tokens() -> None:
    found = {tuple(tokens_of(single([(0, SamplingParams(seed=seed))], [0]), 0)) for seed in range(5)}
    assert len(found) == 5


@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize("cases", [CASES, CASES[:1], [CASES[0], CASES[6]]], ids=["mixed", "plain", "greedy"])
def test_a_cut_vocabulary_gives_the_same_tokens(tp: int, cases: list[Case]) -> None:
    slots = list(range(len(cases)))
    box: list[Any] = [None] * tp
    barrier = threading.Barrier(tp)
    found: dict[int, list[Sampled]] = {}

    def rank(number: int) -> None:
        comm = ThreadRanks(number, box, barrier)
        found[number] = run_steps(number, comm, tp, cases, slots)

    threads = [threading.Thread(target=rank, args=(number,), daemon=True) for number in range(tp)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    expected = single(cases, slots)
    assert len(found) == tp
    for step, sampled in enumerate(found[0]):
        assert sampled.tokens_S.tolist() == expected[step].tokens_S.tolist()
        assert sampled.logprobs == expected[step].logprobs
        for number in range(1, tp):
            if found[number][step].everywhere:
                assert found[number][step].tokens_S.tolist() == sampled.tokens_S.tolist()


def test_plain_greedy_rows_tell_every_rank() -> None:
    assert all(sampled.everywhere for sampled in single(CASES[:1], [0]))


def test_ties_over_shards_go_to_the_lowest_id() -> None:
    tp, box, barrier = 2, [None, None], threading.Barrier(2)
    logits = torch.zeros(1, VOCAB)
    logits[0, [20, 60]] = 1.0
    tokens = [0, 0]

    def rank(number: int) -> None:
        state = BatchState(1, 16, 1, 4)
        head: Any = Head((number * 52, (number + 1) * 52))
        sampler = Sampler(head, ThreadRanks(number, box, barrier), np.ones((1, 16), np.int32), VOCAB)  # type: ignore[arg-type]
        plan = StepPlan(0, [0], [1], new=[NewSequence(0, [1], 1, 0, [[]], PARAMS[0])])
        state.apply(plan)
        sampler.admit(plan)
        tokens[number] = int(sampler.run(logits, sampler.foresee(state.rows(plan))).tokens_S[0])

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(tp)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tokens == [20, 20]


def test_a_request_whose_every_token_is_banned_gives_minus_one() -> None:
    params = SamplingParams(temperature=0.0, allowed_token_ids=[3], bad_words_token_ids=[[3]])
    assert tokens_of(single([(0, params)], [0]), 0)[0] == -1
    assert tokens_of(single([(0, params), CASES[1]], [0, 1]), 1) == tokens_of(single([CASES[1]], [0]), 0)
