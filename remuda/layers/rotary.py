"""Rope angles and query temperature of a step, from its positions: no table, whatever the longest position is.

T tokens, D head_dim.
"""

from __future__ import annotations

import math

import torch

from remuda.config.model import RopeScaling


def inverse_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> torch.Tensor:
    """Radians per position of each of the D / 2 pairs, float32."""
    frequency = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if scaling is None:
        return frequency
    wavelength = 2 * math.pi / frequency
    low_wavelength = scaling.original_max_position_embeddings / scaling.low_freq_factor
    high_wavelength = scaling.original_max_position_embeddings / scaling.high_freq_factor
    scaled = torch.where(wavelength > low_wavelength, frequency / scaling.factor, frequency)
    if scaling.low_freq_factor == scaling.high_freq_factor:  # no band between: its formula would divide by zero
        return scaled
    turns = scaling.original_max_position_embeddings / wavelength
    smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blended = (1 - smooth) * frequency / scaling.factor + smooth * frequency
    between = (wavelength >= high_wavelength) & (wavelength <= low_wavelength)
    return torch.where(between, blended, scaled)


class RotaryAngles:
    """Computes cos_sin_TD of a step once; every layer with rope reads it."""

    def __init__(self, head_dim: int, theta: float, scaling: RopeScaling | None, device: torch.device) -> None:
        self.inverse_frequency = inverse_frequencies(head_dim, theta, scaling).to(device)

    def __call__(self, positions_T: torch.Tensor) -> torch.Tensor:
        """float32 [T, D]: cosines of the D / 2 angles, then their sines."""
        angles = torch.outer(positions_T.float(), self.inverse_frequency)
        return torch.cat((angles.cos(), angles.sin()), dim=-1)


class QueryTemperature:
    """Llama 4's temperature tuning of layers without rope: sharper queries far into a context."""

    def __init__(self, floor: float, scale: float) -> None:
        self.floor = floor
        self.scale = scale

    def __call__(self, positions_T: torch.Tensor) -> torch.Tensor:
        """float32 [T]: 1 + scale * ln(1 + floor((position + 1) / floor))."""
        steps_T = (positions_T.float() + 1.0).div_(self.floor).floor_()
        return steps_T.log1p_().mul_(self.scale).add_(1.0)
