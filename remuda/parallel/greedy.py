"""(maximum, token id) pairs as integers, so that ranks that each hold a part of the vocabulary find the greatest.

S rows.
"""

from __future__ import annotations

import torch

_ALL = 0xFFFFFFFF
_MOST = 0x7FFFFFFF


def greedy_keys(value_S: torch.Tensor, id_S: torch.Tensor) -> torch.Tensor:
    """float32 maxima and their token ids -> int64 keys whose order is that of the values, then of the lower ids.

    NaN is greater than everything, as in torch's max; no key is 0, which peers take for "not yet".
    """
    bits_S = value_S.float().view(torch.int32)
    ordered_S = torch.where(bits_S < 0, bits_S ^ _MOST, bits_S)  # IEEE order as integers
    ordered_S = torch.where(value_S.isnan(), _MOST, ordered_S)
    return (ordered_S.long() << 32) | (_ALL - id_S.long())


def of_greedy_keys(key_S: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The values (float32) and token ids (int64) behind keys."""
    ordered_S = (key_S >> 32).int()
    bits_S = torch.where(ordered_S < 0, ordered_S ^ _MOST, ordered_S)
    return bits_S.view(torch.float32), _ALL - (key_S & _ALL)
