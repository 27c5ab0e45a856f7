"""Rotary angles and embedding, per-head norm, query temperature and the write into the KV pages, in torch.

T tokens, X = (Q + 2 K) * D, Q query heads and K key/value heads of this rank, D head_dim, P pages, B block_size.
"""

from __future__ import annotations

import math

import torch

from remuda.config.model import RopeScaling
from remuda.kernels.batch import BatchView
from remuda.kernels.table import HeadLayout, HeadNorm


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


class RopeAngles:
    """Cosines and sines of positions: no table, whatever the longest position is. See `make_rope_angles` in the kernel
    table."""

    def __init__(
        self,
        head_dim: int,
        theta: float,
        scaling: RopeScaling | None,
        tuning: tuple[float, float] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.inverse_frequency = inverse_frequencies(head_dim, theta, scaling).to(device)
        self.tuning = tuning

    def __call__(self, positions_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """float32 [T, D], cosines of the D / 2 angles, then their sines; and the queries' temperature."""
        angles = torch.outer(positions_T.float(), self.inverse_frequency)
        cos_sin_TD = torch.cat((angles.cos(), angles.sin()), dim=-1)
        return cos_sin_TD, query_temperature(positions_T, *self.tuning) if self.tuning else None


def query_temperature(positions_T: torch.Tensor, floor: float, scale: float) -> torch.Tensor:
    """float32 [T]: 1 + scale * ln(1 + floor((position + 1) / floor)). Llama 4: sharper queries far into a context."""
    steps_T = (positions_T.float() + 1.0).div_(floor).floor_()
    return steps_T.log1p_().mul_(scale).add_(1.0)


def rotate(x_THD: torch.Tensor, cos_sin_TD: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """Rotate float32 heads [T, heads, D] by the step's angles [T, D] (cosines, then sines). Returns a new tensor."""
    cos, sin = cos_sin_TD.unsqueeze(1).chunk(2, dim=-1)
    if interleaved:
        pairs = x_THD.unflatten(-1, (-1, 2))
        a, b = pairs.unbind(-1)
        return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    a, b = x_THD.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def write_kv(
    key_TKD: torch.Tensor, value_TKD: torch.Tensor, batch: BatchView, group: int, k: torch.Tensor, v: torch.Tensor
) -> None:
    """Store one key and value per token into pages k, v [P, K, B, D] at the group's places."""
    place = batch.plans.get(("places", group))
    if place is None:
        places_T = batch.places_GT[group]
        place = batch.plans["places", group] = (places_T // batch.block_size, places_T % batch.block_size)
    pages_T, offsets_T = place
    k[pages_T, :, offsets_T] = key_TKD
    v[pages_T, :, offsets_T] = value_TKD


def rope_kv(
    qkv_TX: torch.Tensor,
    cos_sin_TD: torch.Tensor | None,
    temperature_T: torch.Tensor | None,
    layout: HeadLayout,
    batch: BatchView,
    group: int,
    k: torch.Tensor,
    v: torch.Tensor,
    norm: HeadNorm | None = None,
) -> torch.Tensor:
    """Finish the queries [T, Q, D] and put keys and values into the pages of `group`.

    ``cos_sin_TD`` float32, cosines then sines of the step's positions; None: no rope. ``temperature_T`` float32
    multiplies the queries.
    """
    Q, K, D = layout.num_heads, layout.num_kv_heads, layout.head_dim
    heads = qkv_TX.unflatten(-1, (Q + 2 * K, D))
    query_key, value_TKD = heads[:, : Q + K], heads[:, Q + K :]
    if cos_sin_TD is not None or norm is not None:
        exact = query_key.float()
        if norm is not None and norm.before_rope:
            exact = _norm_heads(exact, Q, norm)
        if cos_sin_TD is not None:
            exact = rotate(exact, cos_sin_TD, layout.interleaved)
        if norm is not None and not norm.before_rope:
            exact = _norm_heads(exact, Q, norm)
        query_key = exact.to(qkv_TX.dtype)
    query_TQD, key_TKD = query_key[:, :Q], query_key[:, Q:]
    if temperature_T is not None:
        query_TQD = (query_TQD * temperature_T.view(-1, 1, 1)).to(qkv_TX.dtype)
    write_kv(key_TKD, value_TKD, batch, group, k, v)
    return query_TQD


def _norm_heads(heads: torch.Tensor, queries: int, norm: HeadNorm) -> torch.Tensor:
    """Float32 heads [T, Q + K, D], the first `queries` with the queries' weight."""
    exact = torch.rms_norm(heads, heads.shape[-1:], None, norm.eps)
    if norm.q_weight_D is not None and norm.k_weight_D is not None:
        exact[:, :queries] *= norm.q_weight_D
        exact[:, queries:] *= norm.k_weight_D
    return exact
