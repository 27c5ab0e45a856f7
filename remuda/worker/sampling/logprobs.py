"""Log-probabilities as a client sees them: natural logarithms, of the raw logits (S rows, V vocabulary)."""

from __future__ import annotations

import torch

from remuda.protocol.request import TokenLogprobs


def token_logprobs(logits_SV: torch.Tensor, chosen_S: torch.Tensor, top_S: list[int]) -> list[TokenLogprobs]:
    """One entry per row: the chosen token and the `top_S[i]` most likely ones. Raw logits, float32."""
    normalizer_S1 = logits_SV.logsumexp(dim=1, keepdim=True)
    chosen_S1 = chosen_S.clamp(min=0).unsqueeze(1)
    chosen_logits_S1 = logits_SV.gather(1, chosen_S1)
    rank_S = (logits_SV > chosen_logits_S1).sum(dim=1) + 1
    top_values, top_ids = logits_SV.topk(min(max(top_S), logits_SV.shape[1]), dim=1)
    ids = torch.cat([chosen_S1, top_ids], dim=1).tolist()
    logprobs = (torch.cat([chosen_logits_S1, top_values], dim=1) - normalizer_S1).tolist()
    return [
        TokenLogprobs(token_ids=row_ids[: 1 + top], logprobs=row_logprobs[: 1 + top], rank=rank)
        for row_ids, row_logprobs, rank, top in zip(ids, logprobs, rank_S.tolist(), top_S, strict=True)
    ]
