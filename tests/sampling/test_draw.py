"""The draw against its definition: distributions, filters, ties."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from remuda.worker.sampling.draw import draw, invert_cdf, keep_likely, weights
from remuda.worker.sampling.uniform import uniform

VOCAB = 600  # more than two blocks of the two-level search


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def kept_by_definition(logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """Sorted by probability, ties by id: min-p and top-k, then the shortest prefix that reaches top-p of the rest."""
    exponents = np.exp((logits - logits.max()) / temperature)
    order = sorted(range(len(logits)), key=lambda token: (-exponents[token], token))
    order = [token for token in order if exponents[token] >= min_p][:top_k]
    total, mass, kept = exponents[order].sum(), 0.0, []
    for token in order:
        if mass >= top_p * total and kept and top_p < 1:
            break
        kept.append(token)
        mass += exponents[token]
    mask = np.zeros(len(logits), bool)
    mask[kept] = True
    return mask


@pytest.mark.parametrize("vocab", [7, VOCAB, 3000])
def test_filters_keep_what_their_definition_keeps(vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    rows = 40
    logits = rng.normal(size=(rows, vocab)).astype(np.float32) * rng.uniform(0.1, 6, (rows, 1)).astype(np.float32)
    temperature, top_p = rng.uniform(0.3, 2, rows), rng.choice([0.1, 0.5, 0.9, 0.97, 1.0], rows)
    top_k, min_p = rng.choice([1, 3, 50, vocab], rows).clip(max=vocab), rng.choice([0.0, 0.05, 0.5], rows)
    found = keep_likely(
        weights(torch.from_numpy(logits), torch.from_numpy(temperature)),
        *(torch.from_numpy(array) for array in (top_k, top_p, min_p)),
    )
    for row in range(rows):
        expected = kept_by_definition(logits[row], temperature[row], top_k[row], top_p[row], min_p[row])
        assert ((found[row] > 0).numpy() == expected).all(), row


def test_ties_at_the_border_go_to_the_lowest_ids() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, 1.0, 1.0, 0.0]])
    kept = keep_likely(weights(logits, doubles(1.0)), torch.tensor([3]), doubles(1.0), doubles(0.0))
    assert (kept[0] > 0).tolist() == [False, True, True, True, False, False]
    flat = torch.zeros(1, 100)
    kept = keep_likely(weights(flat, doubles(1.0)), torch.tensor([100]), doubles(0.25), doubles(0.0))
    assert (kept[0] > 0).nonzero().squeeze(1).tolist() == list(range(25))


def test_top_p_beyond_the_candidates_sorts_everything() -> None:
    flat = torch.zeros(1, 5000)
    kept = keep_likely(weights(flat, doubles(1.0)), torch.tensor([5000]), doubles(0.5), doubles(0.0))
    assert int((kept > 0).sum()) == 2500


def test_inverse_cdf_is_the_first_token_past_the_target() -> None:
    rng = np.random.default_rng(0)
    mass = rng.random((200, VOCAB)).astype(np.float32) * (rng.random((200, VOCAB)) < 0.3)
    u = rng.random(200)
    u[:3] = 0.0, 1 - 2**-53, 0.5
    tokens = invert_cdf(torch.from_numpy(mass), torch.from_numpy(u)).numpy()
    cumulative = mass.astype(np.float64).cumsum(axis=1)
    for row in range(200):
        expected = np.searchsorted(cumulative[row], u[row] * cumulative[row, -1], side="right")
        assert mass[row, tokens[row]] > 0
        assert abs(cumulative[row, tokens[row]] - cumulative[row, min(expected, VOCAB - 1)]) < 1e-9


def test_drawn_frequencies_are_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5])
    draws = 40_000
    u = torch.from_numpy(uniform(np.full(draws, 11), np.arange(draws)))
    ones = torch.ones(draws, dtype=torch.float64)
    tokens = draw(logits.expand(draws, -1), 0.7 * ones, torch.full((draws,), 5), ones, 0 * ones, u)
    expected = torch.softmax(logits / 0.7, 0).numpy() * draws
    chi_squared = ((np.bincount(tokens.numpy(), minlength=5) - expected) ** 2 / expected).sum()
    assert chi_squared < 18.5  # 4 degrees of freedom: exceeded once in 1,000 by chance; the seed is fixed


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(32, VOCAB, generator=generator) * 3
    temperature, top_p = torch.linspace(0.2, 2, 32).double(), torch.linspace(0.3, 1, 32).double()
    top_k = torch.tensor([VOCAB, 5, 40, VOCAB] * 8)
    min_p = doubles(*([0.0, 0.0, 0.1, 0.0] * 8))
    u = torch.from_numpy(uniform(np.arange(32), np.arange(32)))
    together = draw(logits, temperature, top_k, top_p, min_p, u)
    alone = [
        int(draw(logits[i : i + 1], *(t[i : i + 1] for t in (temperature, top_k, top_p, min_p, u)))) for i in range(32)
    ]
    assert together.tolist() == alone


def test_extreme_temperatures_and_banned_tokens_give_possible_tokens() -> None:
    logits = torch.tensor([[1e4, -1e4, 9.99e3, float("-inf")]]).repeat(3, 1)
    temperature = doubles(1e-30, 1e3, 1.0)
    ones = torch.ones(3, dtype=torch.float64)
    tokens = draw(logits, temperature, torch.full((3,), 4), ones, 0 * ones, 0.99 * ones)
    assert tokens[0] == 0 and tokens[1] in (0, 1, 2) and tokens[2] == 0


def test_uniform_is_a_function_of_seed_and_position() -> None:
    seeds, positions = np.array([0, 0, 1, -5, 2**63 - 1]), np.array([0, 1, 0, 7, 9])
    values = uniform(seeds, positions)
    assert len(set(values.tolist())) == 5 and (values >= 0).all() and (values < 1).all()
    assert uniform(seeds[3:4], positions[3:4])[0] == values[3]
    grid = uniform(np.repeat(np.arange(300), 300), np.tile(np.arange(300), 300))
    assert abs(grid.mean() - 0.5) < 0.004
    assert abs(np.corrcoef(grid[:-1], grid[1:])[0, 1]) < 0.01
    by_seed = grid.reshape(300, 300)
    assert abs(np.corrcoef(by_seed[:-1].ravel(), by_seed[1:].ravel())[0, 1]) < 0.01
    assert np.histogram(grid, 20)[0].std() < 4 * np.sqrt(len(grid) / 20)
