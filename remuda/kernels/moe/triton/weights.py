"""The experts' weights as the GPU kernels read them.

Both weights lie with their inputs in sequence, [experts, outputs, inputs], as a checkpoint's own [out, in] matrices
do: a program that computes some outputs reads whole lines, and 8-bit products on tensor cores take no other order.
Gate and up alternate row by row (gate 0, up 0, gate 1, ...), so that one product makes both and a thread finds each
pair side by side in its registers.

E experts of this rank, H hidden, I intermediate, J = 2 I gate and up in turns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

FP8 = torch.float8_e4m3fn


@dataclass(frozen=True)
class ExpertWeights:
    """bfloat16, float16 or float32 without scales, or float8_e4m3fn with float32 factors of the output channels."""

    gate_up_EJH: torch.Tensor
    down_EHI: torch.Tensor
    gate_up_scale_EJ: torch.Tensor | None = None
    down_scale_EH: torch.Tensor | None = None

    @property
    def fp8(self) -> bool:
        return self.gate_up_EJH.dtype is FP8

    @property
    def nbytes_per_expert(self) -> int:
        """What a token choice reads, scales included."""
        tensors = (self.gate_up_EJH, self.down_EHI, self.gate_up_scale_EJ, self.down_scale_EH)
        return sum(x[0].numel() * x.element_size() for x in tensors if x is not None)


def pack(
    gate_up_EH2I: torch.Tensor, down_EIH: torch.Tensor, scales: tuple[torch.Tensor, torch.Tensor] | None = None
) -> ExpertWeights:
    """Bring weights that are applied as x @ W into the kernels' order, in their own storage, one expert at a time.

    The arguments must fill their storage without gaps, in any order of dimensions 1 and 2 (a view of [E, 2I, H] is
    half the work); they hold something else afterwards.
    """
    gate_up_scale, down_scale = scales or (None, None)
    return ExpertWeights(
        _repack(gate_up_EH2I, gated=True),
        _repack(down_EIH, gated=False),
        None if gate_up_scale is None else interleave(gate_up_scale).float().contiguous(),
        None if down_scale is None else down_scale.float().contiguous(),
    )


def interleave(gate_up: torch.Tensor) -> torch.Tensor:
    """[..., gate half and up half] -> alternating, along the last dimension."""
    return gate_up.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


def _repack(weight_EKN: torch.Tensor, gated: bool) -> torch.Tensor:
    experts, k, n = weight_EKN.shape
    stored_ENK = weight_EKN.transpose(1, 2)
    if not stored_ENK.is_contiguous():
        assert weight_EKN.is_contiguous(), "expert weights with gaps cannot be repacked in place"
        stored_ENK = weight_EKN.view(experts, n, k)
    elif not gated:
        return stored_ENK
    for e in range(experts):
        weight_NK = weight_EKN[e].T
        rows = weight_NK.unflatten(0, (2, -1)).transpose(0, 1) if gated else weight_NK  # gate and up in turns
        stored_ENK[e].copy_(rows.clone(memory_format=torch.contiguous_format).view(n, k))
    return stored_ENK
