"""Embedding of tokens that only the device knows: ids from its token buffer and their rows in one Triton kernel.

T tokens, H hidden, V this rank's rows of the vocabulary, N slots, L positions of a slot.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from remuda.kernels.device import early, power_of_two

_BLOCK = 2048


@triton.jit(do_not_specialize_on_alignment=["positions"])
def _embed(
    tokens, slots, positions, weight, out, stride_tokens, hidden, first, real, H: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    t, h = tl.program_id(0).to(tl.int64), tl.program_id(1) * H + tl.arange(0, H)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    slot = tl.load(slots + t).to(tl.int64)
    row = tl.load(tokens + slot * stride_tokens + tl.load(positions + t)).to(tl.int64) - first
    mine = (row >= 0) & (row < real)
    x_H = tl.load(weight + row * hidden + h, mask=h < tl.where(mine, hidden, 0), other=0.0)
    tl.store(out + t * hidden + h, x_H, mask=h < hidden)


def embed_tokens(
    tokens_NL: torch.Tensor,
    slots_T: torch.Tensor,
    positions_T: torch.Tensor,
    weight_VH: torch.Tensor,
    first: int,
    real: int,
    pdl: bool = False,
) -> torch.Tensor:
    """Rows [T, H] of ids tokens[slot, position]; zeros for ids outside [first, first + real)."""
    count, hidden = slots_T.shape[0], weight_VH.shape[1]
    assert tokens_NL.stride(1) == 1 and weight_VH.is_contiguous()
    out_TH = torch.empty(count, hidden, dtype=weight_VH.dtype, device=weight_VH.device)
    block = min(_BLOCK, power_of_two(hidden))
    if count:
        _embed[(count, triton.cdiv(hidden, block))](
            tokens_NL, slots_T, positions_T, weight_VH, out_TH, tokens_NL.stride(0), hidden, first,
            real, H=block, PDL=pdl, num_warps=4, **early(pdl),
        )  # fmt: skip
    return out_TH
