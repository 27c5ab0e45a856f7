"""y = (x W^T) * scale + bias, output by output. x [T, K], weight [N, K], bias and scale [N]."""

from __future__ import annotations

import torch

from tests.kernels.naive.activation import silu_mul


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, scale: torch.Tensor | None, gated: bool
) -> torch.Tensor:
    y = torch.zeros(len(x), len(weight), dtype=torch.float64)
    for token, row in enumerate(x.double()):
        for output, inputs in enumerate(weight.double()):
            y[token, output] = row @ inputs
            if scale is not None:
                y[token, output] *= scale[output]
            if bias is not None:
                y[token, output] += bias[output]
    return silu_mul(y) if gated else y
