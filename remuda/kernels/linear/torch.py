"""y = (x W^T) * scale + bias in torch. T tokens, K inputs, N outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from remuda.kernels.activation.torch import silu_mul

FP8_LARGEST = 448.0  # of float8_e4m3fn


def quantize_channels(weight: torch.Tensor, inputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(float8_e4m3fn values, float32 scales without dimension `inputs`), whose product is `weight` but for rounding.

    A stack [E, ...] is quantized expert by expert, which bounds what is in memory in float32. `weight` is given up.
    """
    if weight.dim() == 3:
        values = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
        scales = weight.new_empty(weight.shape[:inputs] + weight.shape[inputs + 1 :], dtype=torch.float32)
        for expert, part in enumerate(weight):
            values[expert], scales[expert] = quantize_channels(part, inputs - 1)
        return values, scales
    exact = weight.float()
    scale = exact.abs().amax(inputs, keepdim=True).clamp_(min=1e-12).div_(FP8_LARGEST)
    return exact.div_(scale).to(torch.float8_e4m3fn), scale.squeeze(inputs)


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
