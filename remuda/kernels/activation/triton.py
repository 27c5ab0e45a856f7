"""Gated activations in Triton. T tokens, I intermediate."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from remuda.kernels.device import early, power_of_two

_BLOCK = 2048


@triton.jit
def _silu_mul(
    gate_up, y, y_scale, intermediate, stride, BLOCK: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """A block of one token's outputs; the whole token where a scale is wanted."""
    t, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside_I = i < intermediate
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    gate_I = tl.load(gate_up + t * stride + i, mask=inside_I, other=0.0).to(tl.float32)
    up_I = tl.load(gate_up + t * stride + intermediate + i, mask=inside_I, other=0.0).to(tl.float32)
    compute = gate_up.dtype.element_ty
    y_I = (gate_I / (1.0 + tl.exp(-gate_I))).to(compute).to(tl.float32) * up_I
    y_I = y_I.to(compute).to(tl.float32)
    if y_scale is not None:
        scale = tl.maximum(tl.max(tl.abs(y_I), 0), 1e-12) / 448.0
        tl.store(y_scale + t, scale)
        y_I = tl.minimum(tl.maximum(y_I / scale, -448.0), 448.0)
    tl.store(y + t * intermediate + i, y_I.to(y.dtype.element_ty), mask=inside_I)


def silu_mul(gate_up_T2I: torch.Tensor, pdl: bool = False) -> torch.Tensor:
    """silu(gate) * up -> [T, I]; the gate is the first half of the last dimension."""
    tokens, width = gate_up_T2I.shape[0], gate_up_T2I.shape[1] // 2
    assert gate_up_T2I.stride(1) == 1
    y_TI = torch.empty(tokens, width, dtype=gate_up_T2I.dtype, device=gate_up_T2I.device)
    block = min(_BLOCK, power_of_two(width))
    if tokens:
        _silu_mul[(tokens, triton.cdiv(width, block))](
            gate_up_T2I, y_TI, None, width, gate_up_T2I.stride(0), BLOCK=block, PDL=pdl, num_warps=4, **early(pdl)
        )
    return y_TI


def silu_mul_fp8(gate_up_T2I: torch.Tensor, pdl: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """(float8_e4m3fn [T, I], scale_T float32): `silu_mul` rounded to float8 with a factor per token."""
    tokens, width = gate_up_T2I.shape[0], gate_up_T2I.shape[1] // 2
    assert gate_up_T2I.stride(1) == 1
    y_TI = torch.empty(tokens, width, dtype=torch.float8_e4m3fn, device=gate_up_T2I.device)
    scale_T = torch.empty(tokens, dtype=torch.float32, device=gate_up_T2I.device)
    if tokens:
        _silu_mul[(tokens, 1)](
            gate_up_T2I, y_TI, scale_T, width, gate_up_T2I.stride(0),
            BLOCK=power_of_two(width), PDL=pdl, num_warps=16 if width > 4096 else 8, **early(pdl),
        )  # fmt: skip
    return y_TI, scale_T
