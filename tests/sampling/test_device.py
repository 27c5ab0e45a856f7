"""Sampling without a host's help against sampling with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from remuda.worker.sampling import device, draw, uniform


def test_uniform_numbers_are_equal_bit_for_bit() -> None:
    generator = np.random.default_rng(7)
    seeds = generator.integers(-(2**63), 2**63 - 1, 2000, dtype=np.int64)
    positions = generator.integers(0, 2**40, 2000, dtype=np.int64)
    seeds[:4], positions[:4] = (0, -1, 2**63 - 1, -(2**63)), (0, 1, 0, 2**62)
    here = device.uniform(torch.from_numpy(seeds), torch.from_numpy(positions))
    assert np.array_equal(here.numpy(), uniform.uniform(seeds, positions))


def draws_of_both(logits_SV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows, vocab = logits_SV.shape
    pick = lambda values: torch.tensor(values)[torch.randint(0, len(values), (rows,))]  # noqa: E731
    parameters = (
        pick([0.3, 1.0, 2.5]).double(),
        pick([1, 2, 50, vocab]),
        pick([0.05, 0.9, 0.999, 1.0]).double(),
        pick([0.0, 0.0, 0.2]).double(),
        torch.rand(rows, dtype=torch.float64),
    )
    return device.draw(logits_SV.clone(), *parameters), draw.draw(logits_SV.clone(), *parameters)


def test_draws_are_those_of_the_host() -> None:
    torch.manual_seed(3)
    for vocab in (5, 300, 2000):
        here, there = draws_of_both(torch.randn(200, vocab) * 3)
        assert torch.equal(here, there)


def test_many_rows_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    monkeypatch.setattr(device, "LOGITS_AT_ONCE", 7 * 300)
    here, there = draws_of_both(torch.randn(45, 300) * 3)
    assert torch.equal(here, there)


def test_ties_are_cut_in_vocabulary_order() -> None:
    torch.manual_seed(4)
    here, there = draws_of_both(torch.randint(0, 4, (400, 500)).float())
    assert torch.equal(here, there)
