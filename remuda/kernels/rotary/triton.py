"""From a fused QKV projection to finished queries and KV pages in one Triton kernel; rope angles of a step in another.

T tokens, X = (Q + 2 K) * D, Q query heads and K key/value heads of this rank, D head_dim, P pages, B page size.
In kernels: T tokens of a program, H = D / 2 pairs that rotate together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from remuda.kernels.batch import BatchView
from remuda.kernels.device import early
from remuda.kernels.rotary.torch import inverse_frequencies

if TYPE_CHECKING:
    from remuda.config.model import RopeScaling
    from remuda.kernels.table import HeadLayout, HeadNorm

_FEW_TOKENS = 64  # up to so many, a program for each


@triton.jit
def _load_pairs(start_T1, inside_T1, T: tl.constexpr, D: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Both halves of the pairs, float32 [T, H]; T of the start may be 1 (a weight)."""
    if INTERLEAVED:
        x_TD = tl.load(start_T1 + tl.arange(0, D)[None, :], mask=inside_T1, other=0.0).to(tl.float32)
        a_TH, b_TH = tl.split(tl.reshape(x_TD, (T, D // 2, 2)))
    else:
        h = tl.arange(0, D // 2)[None, :]
        a_TH = tl.load(start_T1 + h, mask=inside_T1, other=0.0).to(tl.float32)
        b_TH = tl.load(start_T1 + D // 2 + h, mask=inside_T1, other=0.0).to(tl.float32)
    return a_TH, b_TH


@triton.jit
def _store_pairs(start_T1, inside_T1, a_TH, b_TH, T: tl.constexpr, D: tl.constexpr, INTERLEAVED: tl.constexpr):
    kind = start_T1.dtype.element_ty
    if INTERLEAVED:
        x_TD = tl.reshape(tl.join(a_TH, b_TH), (T, D))
        tl.store(start_T1 + tl.arange(0, D)[None, :], x_TD.to(kind), mask=inside_T1)
    else:
        h = tl.arange(0, D // 2)[None, :]
        tl.store(start_T1 + h, a_TH.to(kind), mask=inside_T1)
        tl.store(start_T1 + D // 2 + h, b_TH.to(kind), mask=inside_T1)


@triton.jit
def _norm_head(a_TH, b_TH, q_weight, k_weight, is_query, eps, D: tl.constexpr, INTERLEAVED: tl.constexpr):
    square_T = tl.sum(a_TH * a_TH + b_TH * b_TH, 1)
    factor_T1 = (1.0 / tl.sqrt(square_T / D + eps))[:, None]
    a_TH, b_TH = a_TH * factor_T1, b_TH * factor_T1
    if q_weight is not None:
        zero = tl.zeros([1, 1], tl.int32)
        query = is_query.to(tl.int32)
        q_a, q_b = _load_pairs(q_weight + zero, zero < query, 1, D, INTERLEAVED)
        k_a, k_b = _load_pairs(k_weight + zero, zero == query, 1, D, INTERLEAVED)
        a_TH, b_TH = a_TH * (q_a + k_a), b_TH * (q_b + k_b)  # of the two, the other's are zeros
    return a_TH, b_TH


@triton.jit
def _to_page(x, factor, COMPUTE: tl.constexpr, FP8: tl.constexpr):
    """As a page holds it: rounded to the compute dtype, then, for float8, scaled and kept within its range."""
    x = x.to(COMPUTE).to(tl.float32)
    if FP8:
        x = tl.minimum(tl.maximum(x * factor, -448.0), 448.0)
    return x


@triton.jit(do_not_specialize=["tokens"], do_not_specialize_on_alignment=["slots"])
def _rope_kv(
    qkv, cos_sin, temperature, q_weight, k_weight, places, k, v, k_factor, v_factor, eps, tokens, first_head,
    stride_t, stride_page,
    Q: tl.constexpr, K: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, T: tl.constexpr,
    INTERLEAVED: tl.constexpr, NORM: tl.constexpr, FP8: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One head of T tokens: queries are finished in place, keys and values go to their pages."""
    t = tl.program_id(0) * T + tl.arange(0, T)
    head = first_head + tl.program_id(1)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    inside_T1 = (t < tokens)[:, None]
    source_T1 = qkv + (t.to(tl.int64) * stride_t + head * D)[:, None]
    a_TH, b_TH = _load_pairs(source_T1, inside_T1, T, D, INTERLEAVED)
    if head < Q + K:
        if NORM == "before":
            a_TH, b_TH = _norm_head(a_TH, b_TH, q_weight, k_weight, head < Q, eps, D, INTERLEAVED)
        if cos_sin is not None:
            angle_TH = t[:, None] * D + tl.arange(0, D // 2)[None, :]
            cos_TH = tl.load(cos_sin + angle_TH, mask=inside_T1, other=1.0)
            sin_TH = tl.load(cos_sin + angle_TH + D // 2, mask=inside_T1, other=0.0)
            a_TH, b_TH = a_TH * cos_TH - b_TH * sin_TH, b_TH * cos_TH + a_TH * sin_TH
        if NORM == "after":
            a_TH, b_TH = _norm_head(a_TH, b_TH, q_weight, k_weight, head < Q, eps, D, INTERLEAVED)
    if head < Q:
        if temperature is not None:
            factor_T1 = tl.load(temperature + t, mask=t < tokens, other=1.0)[:, None]
            a_TH = a_TH.to(qkv.dtype.element_ty).to(tl.float32) * factor_T1
            b_TH = b_TH.to(qkv.dtype.element_ty).to(tl.float32) * factor_T1
        _store_pairs(source_T1, inside_T1, a_TH, b_TH, T, D, INTERLEAVED)
    else:
        place_T = tl.load(places + t, mask=t < tokens, other=0)
        at_T = place_T // PAGE * stride_page + place_T % PAGE * D
        if head < Q + K:
            target_T1 = k + (at_T + (head - Q) * (PAGE * D))[:, None]
            a_TH = _to_page(a_TH, k_factor, qkv.dtype.element_ty, FP8)
            b_TH = _to_page(b_TH, k_factor, qkv.dtype.element_ty, FP8)
            _store_pairs(target_T1, inside_T1, a_TH, b_TH, T, D, INTERLEAVED)
        else:
            target_T1 = v + (at_T + (head - Q - K) * (PAGE * D))[:, None]
            a_TH = _to_page(a_TH, v_factor, qkv.dtype.element_ty, FP8)
            b_TH = _to_page(b_TH, v_factor, qkv.dtype.element_ty, FP8)
            _store_pairs(target_T1, inside_T1, a_TH, b_TH, T, D, INTERLEAVED)


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
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    pdl: bool = False,
) -> torch.Tensor:
    """Finish the queries in place (a view [T, Q, D] of `qkv_TX`) and put keys and values into the pages of `group`.

    ``cos_sin_TD`` float32, cosines then sines of the step's positions; None: no rope. ``norm``: of each query and key
    head, before or after the rotation, with weights or without.
    ``temperature_T`` float32 multiplies the queries. Float8 pages hold keys / ``k_scale`` and values / ``v_scale``.
    """
    Q, K, D = layout.num_heads, layout.num_kv_heads, layout.head_dim
    tokens = qkv_TX.shape[0]
    assert qkv_TX.stride(1) == 1 and k.is_contiguous() and v.is_contiguous()
    keeps_queries = cos_sin_TD is None and temperature_T is None and norm is None
    first_head = Q if keeps_queries else 0
    per_program = 1 if tokens <= _FEW_TOKENS else 16
    q_weight, k_weight = (norm.q_weight_D, norm.k_weight_D) if norm else (None, None)
    order = ("before" if norm.before_rope else "after") if norm else "none"
    if tokens:
        _rope_kv[(triton.cdiv(tokens, per_program), Q + 2 * K - first_head)](
            qkv_TX, cos_sin_TD, temperature_T, q_weight, k_weight, batch.places_GT[group], k, v,
            1.0 / k_scale, 1.0 / v_scale, norm.eps if norm else 0.0, tokens, first_head, qkv_TX.stride(0), k.stride(0),
            Q=Q, K=K, D=D, PAGE=k.shape[2], T=per_program, INTERLEAVED=layout.interleaved,
            NORM=order, FP8=k.dtype == torch.float8_e4m3fn, PDL=pdl,
            num_warps=1 if per_program == 1 else 4, **early(pdl),
        )  # fmt: skip
    return qkv_TX.as_strided((tokens, Q, D), (qkv_TX.stride(0), D, 1), qkv_TX.storage_offset())


@triton.jit(do_not_specialize=["tokens"], do_not_specialize_on_alignment=["positions"])
def _angles(
    positions, frequency, cos_sin, temperature, tokens, floor, scale,
    H: tl.constexpr, T: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    t, h = tl.program_id(0) * T + tl.arange(0, T), tl.arange(0, H)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    position_T = tl.load(positions + t, mask=t < tokens, other=0).to(tl.float32)
    angle_TH = position_T[:, None] * tl.load(frequency + h)[None, :]
    place_TH = t[:, None] * (2 * H) + h[None, :]
    tl.store(cos_sin + place_TH, tl.cos(angle_TH), mask=(t < tokens)[:, None])
    tl.store(cos_sin + place_TH + H, tl.sin(angle_TH), mask=(t < tokens)[:, None])
    if temperature is not None:
        steps_T = tl.floor((position_T + 1.0) / floor)
        tl.store(temperature + t, 1.0 + scale * tl.log(1.0 + steps_T), mask=t < tokens)


def rope_angles(
    positions_T: torch.Tensor,
    inverse_frequency_H: torch.Tensor,
    tuning: tuple[float, float] | None = None,
    pdl: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(cos_sin_TD, temperature_T or None), float32, in one launch a step.

    ``inverse_frequency_H`` radians per position; temperature by ``tuning`` (floor, scale):
    1 + scale * ln(1 + floor((position + 1) / floor)).
    """
    tokens, half = positions_T.shape[0], inverse_frequency_H.shape[0]
    cos_sin_TD = torch.empty(tokens, 2 * half, dtype=torch.float32, device=positions_T.device)
    temperature_T = torch.empty(tokens, dtype=torch.float32, device=positions_T.device) if tuning else None
    floor, scale = tuning or (1.0, 0.0)
    if tokens:
        _angles[(triton.cdiv(tokens, 4),)](
            positions_T, inverse_frequency_H, cos_sin_TD, temperature_T, tokens, floor, scale,
            H=half, T=4, PDL=pdl, num_warps=2, **early(pdl),
        )  # fmt: skip
    return cos_sin_TD, temperature_T


class RopeAngles:
    """See `make_rope_angles` in the kernel table."""

    def __init__(
        self,
        head_dim: int,
        theta: float,
        scaling: RopeScaling | None,
        tuning: tuple[float, float] | None,
        device: torch.device | str,
        pdl: bool = False,
    ) -> None:
        self._inverse_frequency_H = inverse_frequencies(head_dim, theta, scaling).to(device)
        self._tuning = tuning
        self._pdl = pdl

    def __call__(self, positions_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return rope_angles(positions_T, self._inverse_frequency_H, self._tuning, self._pdl)
