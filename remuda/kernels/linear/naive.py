"""y = (x W^T) * scale + bias in torch. T tokens, K inputs, N outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F


class PackedLinear:
    """One linear layer that owns its weight and its memory layout.

    ``scale_N`` (float32) multiplies output channels: the weight of a quantized checkpoint, cast exactly to the compute
    dtype, times its per-channel scale.
    """

    def __init__(
        self, weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None, scale_N: torch.Tensor | None = None
    ) -> None:
        self.weight_NK = weight_NK
        self.bias_N = bias_N
        self.scale_N = scale_N

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        """[..., K] -> [..., N] in x's dtype."""
        if self.scale_N is None:
            return F.linear(x_TK, self.weight_NK, self.bias_N)
        y_TN = (F.linear(x_TK, self.weight_NK) * self.scale_N).to(x_TK.dtype)
        return y_TN if self.bias_N is None else y_TN + self.bias_N

    def adopt_native(self) -> None:
        """Repack for the native kernels where they serve this layer; torch keeps serving it otherwise."""
