"""Routing and routed experts."""

from __future__ import annotations

import torch

from remuda.kernels.linear.native import DTYPES
from remuda.kernels.moe import naive, native
from remuda.kernels.native import runtime


def route_sigmoid(logits_TE: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Best experts by logit and the sigmoid (in float32) of their logits: (expert_Tk int64, weight_Tk float32)."""
    if runtime.serving and logits_TE.dtype is torch.bfloat16:
        return native.route_sigmoid(logits_TE, top_k)
    return naive.route_sigmoid(logits_TE, top_k)


class PackedExperts:
    """The SwiGLU experts of one rank; owns their weights and memory layout.

    ``gate_up_EH2I`` (gate half first) and ``down_EIH`` are applied as x @ W: in the compute dtype, or
    float8_e4m3fn with ``scales``, float32 factors of output channels, ([E, 2I], [E, H]). Float8 weights stay so in
    memory and are cast, exactly, on their way to the product.
    """

    def __init__(
        self,
        gate_up_EH2I: torch.Tensor,
        down_EIH: torch.Tensor,
        scales: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        self._kernel: naive.Experts | native.Experts = naive.Experts(gate_up_EH2I, down_EIH, scales)

    def __call__(self, x_TH: torch.Tensor, expert_Tk: torch.Tensor, weight_Tk: torch.Tensor) -> torch.Tensor:
        """Sum over a token's choices of expert(weight * x) -> [T, H]: the weight multiplies the expert's INPUT.

        ``expert_Tk`` counts this rank's experts from 0; -1 means that the expert lives on another rank.
        """
        return self._kernel(x_TH, expert_Tk, weight_Tk)

    def adopt_native(self) -> None:
        """Repack for the native kernels where they serve these experts; torch keeps serving them otherwise."""
        kernel = self._kernel
        if runtime.serving and isinstance(kernel, naive.Experts) and kernel.gate_up_EH2I.dtype in DTYPES:
            self._kernel = native.Experts(kernel.gate_up_EH2I, kernel.down_EIH, kernel.scales)
