"""Linear layers with a packed weight."""

from __future__ import annotations

import torch

from remuda.kernels.linear import naive, native
from remuda.kernels.native import runtime


class PackedLinear:
    """One linear layer that owns its weight and its memory layout. T tokens, K inputs, N outputs.

    The weight is in the compute dtype, or float8_e4m3fn with ``scale_N`` (float32), which multiplies output channels:
    it stays float8 in memory and is cast, exactly, on its way to the product. ``gated``: the result is
    silu(first half of y) * second half, [..., N / 2].
    """

    def __init__(
        self,
        weight_NK: torch.Tensor,
        bias_N: torch.Tensor | None = None,
        scale_N: torch.Tensor | None = None,
        gated: bool = False,
    ) -> None:
        self._kernel: naive.Linear | native.Linear = naive.Linear(weight_NK, bias_N, scale_N, gated)

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        """[..., K] -> [..., N] in x's dtype."""
        return self._kernel(x_TK)

    def to_float32(self, x_TK: torch.Tensor) -> torch.Tensor:
        """The same as float32: for logits, which keep the precision of the sums where a kernel has it."""
        return self._kernel.to_float32(x_TK)

    def adopt_native(self) -> None:
        """Repack for the native kernels where they serve this layer; torch keeps serving it otherwise."""
        kernel = self._kernel
        if runtime.serving and isinstance(kernel, naive.Linear) and kernel.weight_NK.dtype in native.DTYPES:
            self._kernel = native.Linear(kernel.weight_NK, kernel.bias_N, kernel.scale_N, kernel.gated)
