"""Random weights made on the device, for runs in which only speed and memory matter (`--load-format dummy`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from remuda.weights.arriving import Filled
from remuda.weights.loader import LoadReport, Progress

if TYPE_CHECKING:
    from remuda.weights.parameter import Parameter

_STD = 0.02
_PART_BYTES = 128 << 20  # of random numbers at a time, so that float8 tensors need little beside themselves
FP8_STD = 32.0  # of float8 values: well inside +-448, far from denormals; scales make up for it


def make_parameters(
    parameters: Iterable[Parameter],
    device: torch.device | str,
    dtype: str,
    progress: Progress | None = None,
    filled: Filled = lambda parameter: None,
) -> LoadReport:
    """Allocate every parameter and give it random values: the same on every run. `dtype` is what is computed in."""
    parameters = list(parameters)
    generator = torch.Generator(device).manual_seed(0)
    total, done = sum(parameter.nbytes for parameter in parameters), 0
    for parameter in parameters:
        tensor = torch.empty(parameter.shape, dtype=getattr(torch, parameter.dtype), device=device)
        if len(parameter.shape) == 1:  # the weight of a norm, a bias
            tensor.fill_(1.0)
        elif parameter.dtype == "float32" and dtype != "float32":  # scales of what is quantized
            fill_scale_(tensor, _STD)
        elif not tensor.is_floating_point():  # packed integers: any bits will do
            tensor.random_(-(1 << 31), 1 << 31, generator=generator)
        else:
            fill_weight_(tensor, _STD, generator)
        parameter.fill(tensor)
        filled(parameter)
        done += parameter.nbytes
        if progress is not None:
            progress(done, total)
    return LoadReport(checkpoint_bytes_read=0, weight_bytes=total)


def fill_weight_(weight: torch.Tensor, std: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """Normal numbers of deviation `std`; float8 tensors get FP8_STD, and their scales (`fill_scale_`) the rest."""
    if weight.element_size() > 1:
        return weight.normal_(0.0, std, generator=generator)
    flat = weight.view(-1)
    part = torch.empty(min(flat.numel(), _PART_BYTES // 2), dtype=torch.bfloat16, device=weight.device)
    for start in range(0, flat.numel(), part.numel()):
        size = min(part.numel(), flat.numel() - start)
        flat[start : start + size].copy_(part[:size].normal_(0.0, FP8_STD, generator=generator).clamp_(-448, 448))
    return weight


def fill_scale_(scale: torch.Tensor, std: float) -> torch.Tensor:
    """Factors that bring float8 values of `fill_weight_` to a deviation of `std`."""
    return scale.fill_(std / FP8_STD)
