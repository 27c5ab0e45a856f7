"""Activations to float8, a factor per row: what float8 checkpoints with dynamic per-token activations are made for.

R rows, K inputs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from remuda.kernels.device import early

_WHOLE_ROW = 8192  # inputs that a program keeps in registers between the two looks at them


def quantize_rows(x_RK: torch.Tensor, pdl: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """(q_RK float8_e4m3fn, scale_R float32) with q * scale = x but for rounding; the largest of a row becomes 448."""
    rows, k = x_RK.shape
    q_RK = torch.empty((rows, k), dtype=torch.float8_e4m3fn, device=x_RK.device)
    scale_R = torch.empty(rows, dtype=torch.float32, device=x_RK.device)
    if rows:
        block = min(_WHOLE_ROW, max(32, triton.next_power_of_2(k)))
        _quantize_kernel[(rows,)](
            x_RK, x_RK.stride(0), q_RK, scale_R, k, WHOLE=k <= block, BLOCK_K=block, PDL=pdl,
            num_warps=8 if block > 2048 else 4, **early(pdl),
        )  # fmt: skip
    return q_RK, scale_R


@triton.jit
def _quantize_kernel(
    x, x_stride, q, scale_out, inputs, WHOLE: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    x += row * x_stride
    q += row * inputs
    x_K = tl.load(x + k, mask=k < inputs, other=0.0).to(tl.float32)
    largest = tl.max(tl.abs(x_K), 0)
    if not WHOLE:
        for start in tl.range(BLOCK_K, inputs, BLOCK_K):
            part_K = tl.load(x + start + k, mask=start + k < inputs, other=0.0).to(tl.float32)
            largest = tl.maximum(largest, tl.max(tl.abs(part_K), 0))
    scale = tl.maximum(largest, 1e-12) / 448.0
    tl.store(scale_out + row, scale)
    for start in tl.range(0, inputs, BLOCK_K):
        if not WHOLE:
            x_K = tl.load(x + start + k, mask=start + k < inputs, other=0.0).to(tl.float32)
        q_K = tl.minimum(tl.maximum(x_K / scale, -448.0), 448.0)
        tl.store(q + start + k, q_K.to(q.dtype.element_ty), mask=start + k < inputs)
