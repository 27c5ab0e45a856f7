"""Embedding in torch. T tokens, V rows of the table, H hidden."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def embedding(ids_T: torch.Tensor, weight_VH: torch.Tensor) -> torch.Tensor:
    """Row `ids_T` (int64) of the weight for each token: [T, H], a new tensor."""
    return F.embedding(ids_T, weight_VH)
