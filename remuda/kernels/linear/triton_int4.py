"""Rows times packed 4-bit weights in Triton: the words stream by, each is taken apart in registers.

T tokens, K inputs, N outputs, W = K / 8 words of an output, G groups of inputs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from remuda.kernels.linear.int4 import Int4Linear

_STREAMED_ROWS = 8


class StreamedInt4Linear(Int4Linear):
    """On a GPU: a few rows read the packed words as streams; more of them widen the weight."""

    def product(self, x_TK: torch.Tensor) -> torch.Tensor:
        if x_TK.dim() == 2 and 0 < x_TK.shape[0] <= _STREAMED_ROWS:
            return int4_rows(x_TK, self.packed_NW, self.scale_NG)
        return super().product(x_TK)


def int4_rows(x_TK: torch.Tensor, packed_NW: torch.Tensor, scale_NG: torch.Tensor) -> torch.Tensor:
    """x @ W^T -> [T, N] in x's dtype; see `int4.Int4Linear` for the format."""
    (tokens, _), (outputs, words) = x_TK.shape, packed_NW.shape
    assert x_TK.stride(1) == 1
    y_TN = torch.empty((tokens, outputs), dtype=x_TK.dtype, device=x_TK.device)
    block_n, block_w = 8, min(256, max(16, triton.next_power_of_2(words)))
    _int4_kernel[(triton.cdiv(outputs, block_n), tokens)](
        x_TK, x_TK.stride(0), packed_NW, scale_NG, y_TN, outputs, words, scale_NG.shape[1],
        BLOCK_N=block_n, BLOCK_W=block_w, num_warps=4,
    )  # fmt: skip
    return y_TN


@triton.jit
def _int4_kernel(x, x_stride, packed, scale, y, outputs, words, groups, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr):
    """BLOCK_N outputs of one token: a sum per output and word, added up at the end."""
    token = tl.program_id(1)
    n, w = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_W)
    inside_N1 = (n < outputs)[:, None]
    total = tl.zeros((BLOCK_N, BLOCK_W), tl.float32)
    for start in tl.range(0, words, BLOCK_W):
        w_1W = (start + w)[None, :]
        inside = inside_N1 & (w_1W < words)
        word_NW = tl.load(packed + n[:, None] * words + w_1W, mask=inside, other=0)
        scale_NW = tl.load(scale + n[:, None] * groups + w_1W // (words // groups), mask=inside, other=0.0)
        part_NW = tl.zeros((BLOCK_N, BLOCK_W), tl.float32)
        for i in tl.static_range(8):
            x_1W = tl.load(x + token * x_stride + w_1W * 8 + i, mask=w_1W < words, other=0.0).to(tl.float32)
            part_NW += (((word_NW >> (4 * i)) & 15) - 8).to(tl.float32) * x_1W
        total += part_NW * scale_NW.to(tl.float32)
    tl.store(y + token * outputs + n, tl.sum(total, 1).to(y.dtype.element_ty), mask=n < outputs)
