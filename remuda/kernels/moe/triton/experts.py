"""The routed experts of a rank in Triton, and which kernels serve how many rows.

T tokens, k choices per token, E experts of this rank, H hidden, I intermediate.
"""

from __future__ import annotations

import torch

from remuda.kernels.moe.triton.grouped import experts_grouped
from remuda.kernels.moe.triton.small import experts_small
from remuda.kernels.moe.triton.tuning import SMALL_ROWS, small_streams, tiles
from remuda.kernels.moe.triton.weights import ExpertWeights, pack
from remuda.kernels.table import Weighting


class Experts:
    """The SwiGLU experts of one rank; takes the weights over (see `weights.pack`) and owns their layout.

    ``gate_up_EH2I`` (gate half first) and ``down_EIH`` are applied as x @ W: in the compute dtype, or float8_e4m3fn
    with ``scales``, float32 factors of output channels, ([E, 2I], [E, H]). ``weighting``: what the routing weight
    multiplies, the expert's input (Llama 4) or its output. ``pdl``: kernels start early, see `device.early`.
    """

    def __init__(
        self,
        gate_up_EH2I: torch.Tensor,
        down_EIH: torch.Tensor,
        scales: tuple[torch.Tensor, torch.Tensor] | None = None,
        weighting: Weighting = Weighting.INPUT,
        pdl: bool = False,
    ) -> None:
        self._take(pack(gate_up_EH2I, down_EIH, scales), weighting, pdl)

    @classmethod
    def of(cls, weights: ExpertWeights, weighting: Weighting) -> Experts:
        """Over weights that lie as kernels read them."""
        experts = cls.__new__(cls)
        experts._take(weights, weighting, pdl=False)
        return experts

    def _take(self, weights: ExpertWeights, weighting: Weighting, pdl: bool) -> None:
        self.weights = weights
        self._pdl = pdl
        self.weigh_input = weighting is Weighting.INPUT
        self._streams = small_streams(self.weights.gate_up_EJH.element_size())
        self.quantizes = self.weights.fp8 and _multiplies_fp8(self.weights.gate_up_EJH.device)

    @property
    def count(self) -> int:
        return len(self.weights.down_EHI)

    def __call__(
        self,
        x_TH: torch.Tensor,
        expert_Tk: torch.Tensor,
        weight_Tk: torch.Tensor,
        quantized: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """This rank's part of the sum over each token's choices -> [T, H].

        ``expert_Tk`` counts this rank's experts from 0; -1: another rank's, or a row of padding; it adds nothing.
        ``quantized``: x as `quantize_rows` gives it, if that is there and wanted (`quantizes`).
        """
        rows = expert_Tk.numel()
        if rows == 0:
            return torch.zeros_like(x_TH)
        if rows <= SMALL_ROWS:
            return experts_small(self.weights, x_TH, expert_Tk, weight_Tk, self.weigh_input, *self._streams, self._pdl)
        itemsize = 1 if self.quantizes else x_TH.element_size()
        forms = tiles(rows / self.count, itemsize)
        return experts_grouped(
            self.weights,
            x_TH,
            expert_Tk,
            weight_Tk,
            self.weigh_input,
            *forms,
            self.quantizes,
            self._pdl,
            quantized,
        )


def _multiplies_fp8(device: torch.device) -> bool:
    """Tensor cores take float8 from compute capability 8.9 on; before, weights are widened on the way."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 9)
