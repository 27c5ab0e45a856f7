"""Experts of 4-bit weights on a GPU: some at a time are widened to the compute dtype, and these run as others do.

Right in every batch and inside graphs, and no faster than reading the widened weights. E experts, N outputs, K inputs,
W = K / 8 words of an output, G groups of inputs, J = 2 I gate and up in turns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from remuda.kernels.linear.int4 import PER_WORD
from remuda.kernels.moe.triton.experts import Experts
from remuda.kernels.moe.triton.weights import ExpertWeights
from remuda.kernels.table import Weighting

PackedRows = tuple[torch.Tensor, torch.Tensor]  # words int32 [E, N, W], scales [E, N, G]
_WIDENED_BYTES = 512 << 20  # at a time


class Int4Experts:
    """gate_up [E, 2I, H], gate half first, and down [E, H, I]; both stay packed."""

    def __init__(self, gate_up: PackedRows, down: PackedRows, weighting: Weighting = Weighting.INPUT) -> None:
        self._gate_up = _in_turns(gate_up[0]), _in_turns(gate_up[1])
        self._down = down
        self._weighting = weighting

    def __call__(self, x_TH: torch.Tensor, expert_Tk: torch.Tensor, weight_Tk: torch.Tensor) -> torch.Tensor:
        """See `Experts`."""
        y_TH = torch.zeros_like(x_TH)
        an_expert = PER_WORD * (self._gate_up[0][0].numel() + self._down[0][0].numel()) * x_TH.element_size()
        count, at_once = len(self._down[0]), max(1, _WIDENED_BYTES // an_expert)
        for first in range(0, count, at_once):
            last = min(first + at_once, count)
            gate_up, down = (
                widen(words[first:last], scale[first:last], x_TH.dtype) for words, scale in (self._gate_up, self._down)
            )
            weights = ExpertWeights(gate_up, down)
            here_Tk = torch.where((expert_Tk >= first) & (expert_Tk < last), expert_Tk - first, -1)
            # Not with an early start: kernels that have it take weights for constants.
            y_TH += Experts.of(weights, self._weighting)(x_TH, here_Tk, weight_Tk)
        return y_TH


def _in_turns(rows: torch.Tensor) -> torch.Tensor:
    """[E, gate rows and up rows, ...] -> alternating."""
    return rows.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def widen(words_ENW: torch.Tensor, scale_ENG: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The numbers [E, N, K] that words and scales stand for."""
    experts, outputs, words = words_ENW.shape
    weight_ENK = torch.empty((experts, outputs, words * PER_WORD), dtype=dtype, device=words_ENW.device)
    block = min(512, max(16, triton.next_power_of_2(words)))
    _widen_kernel[(experts * outputs, triton.cdiv(words, block))](
        words_ENW, scale_ENG, weight_ENK, words, scale_ENG.shape[2], BLOCK_W=block, num_warps=4
    )
    return weight_ENK


@triton.jit
def _widen_kernel(words_in, scale, weight, words, groups, BLOCK_W: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    w = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    i = tl.arange(0, 8)
    inside = w < words
    word_W = tl.load(words_in + row * words + w, mask=inside, other=0)
    scale_W = tl.load(scale + row * groups + w // (words // groups), mask=inside, other=0.0).to(tl.float32)
    value_W8 = (((word_W[:, None] >> (4 * i[None, :])) & 15) - 8).to(tl.float32) * scale_W[:, None]
    place_W8 = row * words * 8 + w[:, None] * 8 + i[None, :]
    tl.store(weight + place_W8, value_W8.to(weight.dtype.element_ty), mask=inside[:, None])
