"""Random weights made on the device, for runs in which only speed and memory matter (`--load-format dummy`)."""

from __future__ import annotations

import torch

_PART_BYTES = 128 << 20  # of random numbers at a time, so that float8 tensors need little beside themselves
FP8_STD = 32.0  # of float8 values: well inside +-448, far from denormals; scales make up for it


def fill_weight_(weight: torch.Tensor, std: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """Normal numbers of deviation `std`; float8 tensors get FP8_STD, and their scales (`fill_scale_`) the rest."""
    flat = weight.view(-1)
    if weight.element_size() > 1:
        return weight.normal_(0.0, std, generator=generator)
    part = torch.empty(min(flat.numel(), _PART_BYTES // 2), dtype=torch.bfloat16, device=weight.device)
    for start in range(0, flat.numel(), part.numel()):
        size = min(part.numel(), flat.numel() - start)
        flat[start : start + size].copy_(part[:size].normal_(0.0, FP8_STD, generator=generator).clamp_(-448, 448))
    return weight


def fill_scale_(scale: torch.Tensor, std: float) -> torch.Tensor:
    """Factors that bring float8 values of `fill_weight_` to a deviation of `std`."""
    return scale.fill_(std / FP8_STD)
