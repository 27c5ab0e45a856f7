"""y = (x W^T) * scale + bias in torch. T tokens, K inputs, N outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from remuda.kernels.activation.torch import silu_mul


class Linear:
    """Keeps the weight as the checkpoint has it."""

    def __init__(
        self,
        weight_NK: torch.Tensor,
        bias_N: torch.Tensor | None = None,
        scale_N: torch.Tensor | None = None,
        gated: bool = False,
    ) -> None:
        self.weight_NK = weight_NK
        self.bias_N = bias_N
        self.scale_N = scale_N
        self.gated = gated

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        if self.scale_N is None:
            y_TN = F.linear(x_TK, self.weight_NK, self.bias_N)
        else:
            y_TN = (F.linear(x_TK, self.weight_NK.to(x_TK.dtype)) * self.scale_N).to(x_TK.dtype)
            if self.bias_N is not None:
                y_TN = y_TN + self.bias_N
        return silu_mul(y_TN) if self.gated else y_TN

    def to_float32(self, x_TK: torch.Tensor) -> torch.Tensor:
        return self(x_TK).float()
