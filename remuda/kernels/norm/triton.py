"""RMS norm in Triton, with the addition before it and the float8 rounding after it in one pass. T tokens, H hidden."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from remuda.kernels.device import early, power_of_two


@triton.jit
def _rms_norm(
    x, residual, weight, y, y_scale, eps, hidden, stride_x, stride_residual,
    H: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One token. The sum replaces the residual; with `y_scale`, y is float8 whose largest is 448."""
    t, h = tl.program_id(0).to(tl.int64), tl.arange(0, H)
    inside_H = h < hidden
    if weight is not None:  # a constant: read while the kernel before may still run
        weight_H = tl.load(weight + h, mask=inside_H, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    x_H = tl.load(x + t * stride_x + h, mask=inside_H, other=0.0).to(tl.float32)
    compute = x.dtype.element_ty
    if residual is not None:
        place_H = residual + t * stride_residual + h
        x_H += tl.load(place_H, mask=inside_H, other=0.0).to(tl.float32)
        x_H = x_H.to(compute).to(tl.float32)
        tl.store(place_H, x_H.to(compute), mask=inside_H)
    y_H = x_H * (1.0 / tl.sqrt(tl.sum(x_H * x_H, 0) / hidden + eps))
    if weight is not None:
        y_H *= weight_H
    y_H = y_H.to(compute).to(tl.float32)
    if y_scale is not None:
        scale = tl.maximum(tl.max(tl.abs(y_H), 0), 1e-12) / 448.0
        tl.store(y_scale + t, scale)
        y_H = tl.minimum(tl.maximum(y_H / scale, -448.0), 448.0)
    tl.store(y + t * hidden + h, y_H.to(y.dtype.element_ty), mask=inside_H)


def _run(
    x_TH: torch.Tensor,
    residual_TH: torch.Tensor | None,
    weight_H: torch.Tensor | None,
    eps: float,
    fp8: bool,
    pdl: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    tokens, hidden = x_TH.shape
    assert x_TH.stride(1) == 1 and (residual_TH is None or residual_TH.stride(1) == 1)
    y_TH = torch.empty(tokens, hidden, dtype=torch.float8_e4m3fn if fp8 else x_TH.dtype, device=x_TH.device)
    scale_T = torch.empty(tokens, dtype=torch.float32, device=x_TH.device) if fp8 else None
    if tokens:
        _rms_norm[(tokens,)](
            x_TH, residual_TH, weight_H, y_TH, scale_T, eps, hidden,
            x_TH.stride(0), 0 if residual_TH is None else residual_TH.stride(0),
            H=power_of_two(hidden), PDL=pdl, num_warps=8 if hidden > 2048 else 4, **early(pdl),
        )  # fmt: skip
    return y_TH, scale_T


def rms_norm(x_TH: torch.Tensor, weight_H: torch.Tensor | None, eps: float, pdl: bool = False) -> torch.Tensor:
    """x / rms(x) * weight over the last dimension, computed in float32, in x's dtype. No weight: plain L2 norm."""
    return _run(x_TH.flatten(0, -2), None, weight_H, eps, False, pdl)[0].view(x_TH.shape)


def rms_norm_fp8(
    x_TH: torch.Tensor, weight_H: torch.Tensor | None, eps: float, pdl: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """(float8_e4m3fn [T, H], scale_T float32): `rms_norm` rounded to float8 with a factor per token."""
    y_TH, scale_T = _run(x_TH, None, weight_H, eps, True, pdl)
    assert scale_T is not None
    return y_TH, scale_T


def add_rms_norm(
    x_TH: torch.Tensor, residual_TH: torch.Tensor, weight_H: torch.Tensor, eps: float, pdl: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rms_norm(residual + x), residual + x). The sum takes the residual's storage."""
    return _run(x_TH, residual_TH, weight_H, eps, False, pdl)[0], residual_TH


def add_rms_norm_fp8(
    x_TH: torch.Tensor, residual_TH: torch.Tensor, weight_H: torch.Tensor, eps: float, pdl: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(float8_e4m3fn [T, H], scale_T, residual + x), see `rms_norm_fp8`."""
    y_TH, scale_T = _run(x_TH, residual_TH, weight_H, eps, True, pdl)
    assert scale_T is not None
    return y_TH, scale_T, residual_TH
