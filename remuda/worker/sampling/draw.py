"""Temperature, top-k, top-p, min-p and the draw. S rows, V vocabulary, C candidates, M blocks of V.

A *weight* is an unnormalised probability: exp((logit - max) / temperature), so that the largest is 1.
Ties are cut in vocabulary order, so that the kept set does not depend on how a sort was run.
"""

from __future__ import annotations

import torch

_CANDIDATES = 128  # top-p looks at so many of the likeliest first, then at ever more
_GROWTH = 8
_BLOCK = 256


def draw(
    logits_SV: torch.Tensor,
    temperature_S: torch.Tensor,
    top_k_S: torch.Tensor,
    top_p_S: torch.Tensor,
    min_p_S: torch.Tensor,
    uniform_S: torch.Tensor,
) -> torch.Tensor:
    """Sample one token per row: int64 [S]. Parameters are float64 (top_k int64; V keeps all); temperatures above 0.

    Rows without a finite logit give an arbitrary token.
    """
    weights_SV = weights(logits_SV, temperature_S)
    vocab = logits_SV.shape[1]
    filtered = (top_k_S < vocab) | (top_p_S < 1.0) | (min_p_S > 0.0)
    if bool(filtered.all()):
        weights_SV = keep_likely(weights_SV, top_k_S, top_p_S, min_p_S)
    elif bool(filtered.any()):
        rows = filtered.nonzero().squeeze(1)
        weights_SV[rows] = keep_likely(weights_SV[rows], top_k_S[rows], top_p_S[rows], min_p_S[rows])
    return invert_cdf(weights_SV, uniform_S)


def weights(logits_SV: torch.Tensor, temperature_S: torch.Tensor) -> torch.Tensor:
    """Float32 weights, the largest of each row 1."""
    shifted_SV = logits_SV - logits_SV.amax(dim=1, keepdim=True)
    return shifted_SV.mul_((1.0 / temperature_S).clamp(max=3e38).float().unsqueeze(1)).exp_()


def keep_likely(
    weights_SV: torch.Tensor, top_k_S: torch.Tensor, top_p_S: torch.Tensor, min_p_S: torch.Tensor
) -> torch.Tensor:
    """Zero the weights that the filters drop: min-p and top-k first, top-p over what they leave."""
    vocab = weights_SV.shape[1]
    weights_SV = torch.where(weights_SV >= min_p_S.float().unsqueeze(1), weights_SV, 0.0)
    needs_sort = (top_k_S < vocab) | (top_p_S < 1.0)
    if not bool(needs_sort.any()):
        return weights_SV
    largest_k = int(torch.where(top_k_S < vocab, top_k_S, 0).max())
    return _keep_among(weights_SV, top_k_S, top_p_S, max(largest_k, _CANDIDATES))


def _keep_among(
    weights_SV: torch.Tensor, top_k_S: torch.Tensor, top_p_S: torch.Tensor, candidates: int
) -> torch.Tensor:
    """Top-k and top-p by the `candidates` largest weights; rows whose nucleus is wider try again with more."""
    vocab = weights_SV.shape[1]
    kept_S, enough_S, sorted_SC = _kept(weights_SV, top_k_S, top_p_S, min(vocab, candidates))
    unfiltered_S = (top_k_S >= vocab) & (top_p_S >= 1.0)
    result_SV = _cut(weights_SV, torch.where(unfiltered_S, vocab + 1, kept_S), sorted_SC)
    if not bool(enough_S.all()):
        rows = (~enough_S).nonzero().squeeze(1)
        result_SV[rows] = _keep_among(weights_SV[rows], top_k_S[rows], top_p_S[rows], candidates * _GROWTH)
    return result_SV


def _kept(
    weights_SV: torch.Tensor, top_k_S: torch.Tensor, top_p_S: torch.Tensor, candidates: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(how many of the largest weights stay, whether `candidates` were enough to tell, the candidates sorted)."""
    sorted_SC = weights_SV.topk(candidates, dim=1).values
    place_C = torch.arange(candidates, device=weights_SV.device)
    inside_SC = place_C < top_k_S.unsqueeze(1)
    mass_SC = (sorted_SC.double() * inside_SC).cumsum(dim=1)
    cut_by_k = top_k_S < weights_SV.shape[1]
    total_S = torch.where(cut_by_k, mass_SC[:, -1], weights_SV.sum(dim=1, dtype=torch.float64))
    before_SC = mass_SC - sorted_SC * inside_SC
    wanted_S = torch.where(top_p_S < 1.0, top_p_S * total_S, torch.inf)
    kept_S = ((before_SC < wanted_S.unsqueeze(1)) & inside_SC & (sorted_SC > 0)).sum(dim=1).clamp(min=1)
    enough_S = cut_by_k | (top_p_S >= 1.0) | (mass_SC[:, -1] >= wanted_S) | (candidates == weights_SV.shape[1])
    return kept_S, enough_S, sorted_SC


def _cut(weights_SV: torch.Tensor, kept_S: torch.Tensor, sorted_SC: torch.Tensor) -> torch.Tensor:
    """Keep the `kept_S` largest weights of each row; among equals at the border, the lowest ids."""
    all_rows = kept_S > sorted_SC.shape[1]
    last_S = (kept_S - 1).clamp(max=sorted_SC.shape[1] - 1)
    border_S1 = sorted_SC.gather(1, last_S.unsqueeze(1)).masked_fill(all_rows.unsqueeze(1), 0.0)
    equals_SV = weights_SV == border_S1
    surplus_S = (weights_SV >= border_S1).sum(dim=1) - kept_S
    if bool(((surplus_S > 0) & ~all_rows).any()):
        wanted_S = equals_SV.sum(dim=1) - surplus_S.clamp(min=0)
        equals_SV &= equals_SV.cumsum(dim=1) <= wanted_S.unsqueeze(1)
    return torch.where((weights_SV > border_S1) | equals_SV, weights_SV, 0.0)


def invert_cdf(weights_SV: torch.Tensor, uniform_S: torch.Tensor) -> torch.Tensor:
    """First token, in vocabulary order, at which the cumulative weight exceeds uniform * total. Sums are float64.

    Two levels (blocks of the vocabulary, then within one block) save a float64 scan of the whole vocabulary.
    """
    rows, vocab = weights_SV.shape
    padded = torch.nn.functional.pad(weights_SV, (0, -vocab % _BLOCK)).view(rows, -1, _BLOCK)
    mass_SM = padded.sum(dim=2, dtype=torch.float64).cumsum(dim=1)
    target_S1 = (uniform_S * mass_SM[:, -1]).unsqueeze(1)
    block_S1 = (mass_SM <= target_S1).sum(dim=1, keepdim=True).clamp(max=mass_SM.shape[1] - 1)
    before_S1 = torch.where(block_S1 > 0, mass_SM.gather(1, (block_S1 - 1).clamp(min=0)), 0.0)
    inside_SB = padded[torch.arange(rows, device=padded.device), block_S1.squeeze(1)].double()
    offset_S = ((inside_SB.cumsum(dim=1) + before_S1) <= target_S1).sum(dim=1)
    # Rounding may leave the target just past the block's own sum: then the block's last token of any weight.
    last_S = _BLOCK - 1 - (inside_SB > 0).flip(1).int().argmax(dim=1)
    return block_S1.squeeze(1) * _BLOCK + torch.minimum(offset_S, last_S)
