"""Embedding in torch. T tokens, V rows of the table, H hidden, N slots, L tokens of a sequence."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def embedding(ids_T: torch.Tensor, weight_VH: torch.Tensor) -> torch.Tensor:
    """Row `ids_T` (int64) of the weight for each token: [T, H], a new tensor."""
    return F.embedding(ids_T, weight_VH)


def embed_tokens(
    tokens_NL: torch.Tensor,
    slots_T: torch.Tensor,
    positions_T: torch.Tensor,
    weight_VH: torch.Tensor,
    first: int,
    real: int,
) -> torch.Tensor:
    """Rows of ids that only a token buffer knows; see `EmbedTokens` in the kernel table."""
    local_T = tokens_NL[slots_T, positions_T] - first
    foreign_T = (local_T < 0) | (local_T >= real)
    return embedding(local_T.masked_fill_(foreign_T, 0), weight_VH).masked_fill_(foreign_T[:, None], 0)
