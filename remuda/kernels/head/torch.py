"""From logits to greedy tokens in torch, by way of keys that ranks with parts of a vocabulary can exchange.

A key is a (maximum, token id) pair as an integer: the greatest of all ranks' keys names the token. S rows, V ids of a
shard, N slots, L tokens of a slot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from remuda.kernels.table import Linear

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


def argmax_keys(logits_SV: torch.Tensor, first_id: int) -> torch.Tensor:
    """The key of each row's largest logit; ids count from `first_id`."""
    value_S, id_S = logits_SV.max(dim=1)
    return greedy_keys(value_S, id_S + first_id)


def head_keys(head: Linear, x_SH: torch.Tensor, real: int, first_id: int) -> torch.Tensor:
    """`argmax_keys` of the head's first `real` outputs."""
    if not real:  # a shard past the vocabulary's end
        nothing_S = torch.full((len(x_SH),), float("-inf"), device=x_SH.device)
        return greedy_keys(nothing_S, torch.full_like(nothing_S, first_id, dtype=torch.int64))
    return argmax_keys(head.to_float32(x_SH)[:, :real], first_id)


def keep_tokens(
    key_S: torch.Tensor, tokens_NL: torch.Tensor, slots_S: torch.Tensor, positions_S: torch.Tensor
) -> torch.Tensor:
    """The tokens that keys name, -1 where the value is not finite; they are written behind `positions_S` of the slots,
    where -1 becomes 0, as the engine ends such a sequence."""
    value_S, id_S = of_greedy_keys(key_S)
    tokens_S = torch.where(value_S.isfinite(), id_S, -1)
    tokens_NL[slots_S, positions_S + 1] = tokens_S.clamp(min=0)
    return tokens_S
