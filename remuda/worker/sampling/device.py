"""Sampling that never asks the host: what `uniform.py` and `draw.py` say, in operations that a CUDA graph can hold.

S rows, V vocabulary.
"""

from __future__ import annotations

import torch

from remuda.worker.sampling.draw import invert_cdf, weights

LOGITS_AT_ONCE = 1 << 24  # that draws are made from


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Without the sign, which int64 would drag along."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _splitmix64(x: torch.Tensor) -> torch.Tensor:
    z = x + _GOLDEN
    z = (z ^ _shift_right(z, 30)) * _MIX_1
    z = (z ^ _shift_right(z, 27)) * _MIX_2
    return z ^ _shift_right(z, 31)


def uniform(seeds_S: torch.Tensor, positions_S: torch.Tensor) -> torch.Tensor:
    """float64 [S] in [0, 1) of int64 (seed, position) pairs, bit for bit what `uniform.uniform` gives."""
    hashed_S = _splitmix64(_splitmix64(seeds_S) ^ (positions_S * _GOLDEN))
    return _shift_right(hashed_S, 11).double() * 2.0**-53


def draw(
    logits_SV: torch.Tensor,
    temperature_S: torch.Tensor,
    top_k_S: torch.Tensor,
    top_p_S: torch.Tensor,
    min_p_S: torch.Tensor,
    uniform_S: torch.Tensor,
) -> torch.Tensor:
    """The tokens of `draw.draw`, int64 [S]: one sort of every row in place of candidates that may turn out too few.

    Many rows are drawn in parts: they need a dozen copies of their logits.
    """
    each_S = (logits_SV, temperature_S, top_k_S, top_p_S, min_p_S, uniform_S)
    rows = max(1, LOGITS_AT_ONCE // logits_SV.shape[1])
    if len(logits_SV) <= rows:
        return _draw(*each_S)
    return torch.cat([_draw(*part) for part in zip(*(x.split(rows) for x in each_S), strict=True)])


def _draw(
    logits_SV: torch.Tensor,
    temperature_S: torch.Tensor,
    top_k_S: torch.Tensor,
    top_p_S: torch.Tensor,
    min_p_S: torch.Tensor,
    uniform_S: torch.Tensor,
) -> torch.Tensor:
    return invert_cdf(_keep_likely(weights(logits_SV, temperature_S), top_k_S, top_p_S, min_p_S), uniform_S)


def _keep_likely(
    weights_SV: torch.Tensor, top_k_S: torch.Tensor, top_p_S: torch.Tensor, min_p_S: torch.Tensor
) -> torch.Tensor:
    """Zero the weights that the filters drop: min-p and top-k first, top-p over what they leave."""
    vocab = weights_SV.shape[1]
    weights_SV = torch.where(weights_SV >= min_p_S.float().unsqueeze(1), weights_SV, 0.0)
    sorted_SV = weights_SV.sort(dim=1, descending=True).values
    inside_SV = torch.arange(vocab, device=weights_SV.device) < top_k_S.unsqueeze(1)
    mass_SV = (sorted_SV.double() * inside_SV).cumsum(dim=1)
    cut_by_k = top_k_S < vocab
    total_S = torch.where(cut_by_k, mass_SV[:, -1], weights_SV.sum(dim=1, dtype=torch.float64))
    wanted_S = torch.where(top_p_S < 1.0, top_p_S * total_S, torch.inf)
    before_SV = mass_SV - sorted_SV * inside_SV
    kept_S = ((before_SV < wanted_S.unsqueeze(1)) & inside_SV & (sorted_SV > 0)).sum(dim=1).clamp(min=1)
    border_S1 = sorted_SV.gather(1, (kept_S - 1).unsqueeze(1))
    equals_SV = weights_SV == border_S1
    surplus_S = (weights_SV >= border_S1).sum(dim=1) - kept_S
    wanted_equals_S1 = (equals_SV.sum(dim=1) - surplus_S).unsqueeze(1)
    equals_SV &= equals_SV.cumsum(dim=1) <= wanted_equals_S1
    return torch.where((weights_SV > border_S1) | equals_SV, weights_SV, 0.0)
