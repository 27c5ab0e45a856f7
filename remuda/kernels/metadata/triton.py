"""Attention metadata of a decode step in one Triton kernel: the host sends the slots of the step, nothing else.

S rows of a graph, N slots, G KV groups, B blocks of a table.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from remuda.kernels.device import early

_COPIED = 256  # entries of a table that are copied at once


@dataclass(frozen=True)
class DecodeInputs:
    """What a captured decode graph reads, rewritten in place before each replay."""

    positions_S: torch.Tensor  # int64
    context_S: torch.Tensor  # int32
    slots_GS: torch.Tensor  # int64: page * block_size + offset
    tables_GSB: torch.Tensor  # int32; written as far as the context reaches


@triton.jit
def _decode_inputs(
    row_slots, computed, pages, positions, context, slots, tables, groups, rows,
    stride_group, stride_slot, stride_tables_group, stride_tables_row,
    PAGE: tl.constexpr, COPIED: tl.constexpr, ADVANCE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row, b = tl.program_id(0), tl.arange(0, COPIED)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    slot = tl.load(row_slots + row).to(tl.int64)
    live = slot >= 0
    position = tl.load(computed + slot, mask=live, other=0).to(tl.int64)
    blocks = tl.where(live, position // PAGE + 1, 0)
    tl.store(positions + row, position)
    tl.store(context + row, tl.where(live, position + 1, 0).to(tl.int32))
    for group in tl.range(0, groups):
        source = pages + group * stride_group + slot * stride_slot
        target = tables + group * stride_tables_group + row * stride_tables_row
        page = tl.load(source + position // PAGE, mask=live, other=0).to(tl.int64)
        tl.store(slots + group * rows + row, tl.where(live, page * PAGE + position % PAGE, 0))
        for start in tl.range(0, blocks, COPIED):
            inside = start + b < blocks
            tl.store(target + start + b, tl.load(source + start + b, mask=inside, other=0), mask=inside)
    if ADVANCE:
        tl.store(computed + slot, (position + 1).to(computed.dtype.element_ty), mask=live)


def decode_inputs(
    row_slots_S: torch.Tensor,
    computed_N: torch.Tensor,
    pages_GNB: torch.Tensor,
    block_size: int,
    inputs: DecodeInputs,
    advance: bool = False,
    pdl: bool = False,
) -> None:
    """Fill `inputs` for one more token of each slot in ``row_slots_S`` (int32 or int64; below 0: a row of padding).

    ``computed_N`` counts the tokens of a slot whose keys are in the cache: the new one's position. ``pages_GNB`` int32:
    each slot's table. Padding gets position 0, context 0 and slot 0 (of the null page). ``advance``: counts go up by
    one; a slot then occurs at most once.
    """
    rows, groups = row_slots_S.shape[0], pages_GNB.shape[0]
    assert pages_GNB.stride(2) == inputs.tables_GSB.stride(2) == 1 and inputs.slots_GS.is_contiguous()
    if rows:
        _decode_inputs[(rows,)](
            row_slots_S, computed_N, pages_GNB, inputs.positions_S, inputs.context_S, inputs.slots_GS,
            inputs.tables_GSB, groups, rows, pages_GNB.stride(0), pages_GNB.stride(1),
            inputs.tables_GSB.stride(0), inputs.tables_GSB.stride(1),
            PAGE=block_size, COPIED=_COPIED, ADVANCE=advance, PDL=pdl, num_warps=4, **early(pdl),
        )  # fmt: skip
