"""Linear layers on a GPU: cuBLAS through torch; float8 weights by row-wise scaled products, or widened where the card
has none. Few rows are a stream of weights, in a kernel that starts while the one before it ends. T tokens, K inputs,
N outputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from remuda.kernels.activation.triton import silu_mul
from remuda.kernels.linear.quantize import quantize_rows
from remuda.kernels.linear.triton import counters_needed, gemv

_STREAMED_ROWS = 8  # in the compute dtype
_STREAMED_FP8_ROWS = 8
_LEAST_FP8_CAPABILITY = (8, 9)
_ALIGNMENT = 16  # cuBLAS: both sizes of a float8 weight must be multiples


class Linear:
    """Weights in the compute dtype, as the checkpoint has them.

    cuBLAS reads a few rows' weights as fast, but waits for what comes before: without early starts it serves all.
    """

    def __init__(self, weight_NK: torch.Tensor, bias_N: torch.Tensor | None, gated: bool, pdl: bool) -> None:
        self.weight_NK = weight_NK
        self.bias_N = bias_N
        self.gated = gated
        self._pdl = pdl
        self._streamed_rows = _STREAMED_ROWS if pdl and weight_NK.is_contiguous() else 0
        self._counter = torch.zeros(counters_needed(weight_NK), dtype=torch.int32, device=weight_NK.device)
        self._wide_sums = weight_NK.is_cuda and weight_NK.dtype in (torch.bfloat16, torch.float16)

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        if x_TK.dim() == 2 and 0 < len(x_TK) <= self._streamed_rows:
            return gemv(x_TK, self.weight_NK, self._counter, bias_N=self.bias_N, gated=self.gated, pdl=True)
        y_TN = F.linear(x_TK, self.weight_NK, self.bias_N)
        return silu_mul(y_TN, self._pdl) if self.gated else y_TN

    def to_float32(self, x_TK: torch.Tensor) -> torch.Tensor:
        if self._wide_sums and self.bias_N is None:
            return torch.mm(x_TK, self.weight_NK.t(), out_dtype=torch.float32)
        return F.linear(x_TK, self.weight_NK, self.bias_N).float()


class Float8Linear:
    """Weights e4m3 with a scale per output channel.

    A few rows stream the weights in their own dtype. More are quantized as they come, with a scale per token, and
    multiplied in float8, except where the sums are wanted in float32 or the card cannot.
    """

    def __init__(
        self, weight_NK: torch.Tensor, bias_N: torch.Tensor | None, scale_N: torch.Tensor, gated: bool, pdl: bool
    ) -> None:
        self.weight_NK = weight_NK
        self.bias_N = bias_N
        self.scale_N = scale_N
        self.gated = gated
        self._pdl = pdl
        self._counter = torch.zeros(counters_needed(weight_NK), dtype=torch.int32, device=weight_NK.device)
        self._multiplies = (
            weight_NK.is_cuda
            and torch.cuda.get_device_capability(weight_NK.device) >= _LEAST_FP8_CAPABILITY
            and not any(size % _ALIGNMENT for size in weight_NK.shape)
        )

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        if x_TK.dim() == 2 and 0 < len(x_TK) <= _STREAMED_FP8_ROWS:
            return gemv(
                x_TK, self.weight_NK, self._counter, self.scale_N, bias_N=self.bias_N, gated=self.gated,
                dtype=x_TK.dtype, pdl=self._pdl,
            )  # fmt: skip
        if self._multiplies and x_TK.dtype is torch.bfloat16:
            y_TN = self._scaled(x_TK)
        else:
            y_TN = (F.linear(x_TK, self.weight_NK.to(x_TK.dtype)) * self.scale_N).to(x_TK.dtype)
        if self.bias_N is not None:
            y_TN = y_TN + self.bias_N
        return silu_mul(y_TN, self._pdl) if self.gated else y_TN

    def _scaled(self, x_TK: torch.Tensor) -> torch.Tensor:
        q_TK, scale_T = quantize_rows(x_TK, self._pdl)
        return torch._scaled_mm(
            q_TK, self.weight_NK.t(), scale_a=scale_T.view(-1, 1), scale_b=self.scale_N.view(1, -1),
            out_dtype=x_TK.dtype,
        )  # fmt: skip

    def to_float32(self, x_TK: torch.Tensor) -> torch.Tensor:
        return self(x_TK).float()


def make_linear(
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor | None = None,
    scale_N: torch.Tensor | None = None,
    gated: bool = False,
    pdl: bool = False,
) -> Linear | Float8Linear:
    """See `MakeLinear` in the kernel table. ``pdl``: kernels start early, see `device.early`."""
    if scale_N is None:
        return Linear(weight_NK, bias_N, gated, pdl)
    return Float8Linear(weight_NK, bias_N, scale_N, gated, pdl)
