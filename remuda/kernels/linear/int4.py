"""y = x W^T + bias of 4-bit weights with a scale per group of inputs (compressed-tensors pack-quantized).

The weight is widened for each call, which is right everywhere and fast nowhere (`triton_int4.py` streams it).

T tokens, K inputs, N outputs, W = K / 8 words of an output, G groups of inputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from remuda.kernels.activation.torch import silu_mul

PER_WORD = 8  # values in an int32, the first in the lowest bits, stored as value + 8
_ZERO = 8


def unpack_int4(packed_NW: torch.Tensor) -> torch.Tensor:
    """[N, W] int32 -> [N, K] int8, -8 ... 7."""
    shift = torch.arange(0, 4 * PER_WORD, 4, dtype=torch.int32, device=packed_NW.device)
    return ((packed_NW.unsqueeze(-1) >> shift & 0xF) - _ZERO).to(torch.int8).flatten(1)


class Int4Linear:
    """One linear layer whose weight stays packed. ``gated``: silu(first half of y) * second half."""

    def __init__(
        self,
        packed_NW: torch.Tensor,
        scale_NG: torch.Tensor,
        bias_N: torch.Tensor | None = None,
        gated: bool = False,
    ) -> None:
        words, groups = packed_NW.shape[1], scale_NG.shape[1]
        assert words % groups == 0, "a group of inputs must fill whole words"
        self.packed_NW, self.scale_NG = packed_NW.contiguous(), scale_NG.contiguous()
        self.bias_N = bias_N
        self.gated = gated

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        """[..., K] -> [..., N] in x's dtype."""
        y_TN = self.product(x_TK)
        if self.bias_N is not None:
            y_TN = y_TN + self.bias_N
        return silu_mul(y_TN) if self.gated else y_TN

    def to_float32(self, x_TK: torch.Tensor) -> torch.Tensor:
        return self(x_TK).float()

    def weight(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight as [N, K] numbers."""
        outputs, groups = self.scale_NG.shape
        weight_NGK = unpack_int4(self.packed_NW).view(outputs, groups, -1).to(dtype)
        return weight_NGK.mul_(self.scale_NG.to(dtype).unsqueeze(-1)).view(outputs, -1)

    def product(self, x_TK: torch.Tensor) -> torch.Tensor:
        """x W^T, before bias and gate."""
        return F.linear(x_TK, self.weight(x_TK.dtype))
