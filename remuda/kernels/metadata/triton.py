"""Attention metadata of a decode step in one Triton kernel: the host sends the slots of the step, nothing else.

S rows of a graph, N slots, G KV groups, B blocks of a table.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from remuda.kernels.device import early
from remuda.kernels.table import DecodeInputs

_COPIED = 256  # entries of a table that are copied at once


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["positions"])
def _decode_inputs(
    slots, positions, pages, context, places, tables, groups, rows,
    stride_group, stride_slot, stride_tables_group, stride_tables_row,
    PAGE: tl.constexpr, COPIED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row, b = tl.program_id(0), tl.arange(0, COPIED)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    slot, position = tl.load(slots + row), tl.load(positions + row)
    blocks = position // PAGE + 1
    tl.store(context + row, (position + 1).to(tl.int32))
    for group in tl.range(0, groups):
        source = pages + group * stride_group + slot * stride_slot
        target = tables + group * stride_tables_group + row * stride_tables_row
        page = tl.load(source + position // PAGE).to(tl.int64)
        tl.store(places + group * rows + row, page * PAGE + position % PAGE)
        for start in tl.range(0, blocks, COPIED):
            inside = start + b < blocks
            tl.store(target + start + b, tl.load(source + start + b, mask=inside, other=0), mask=inside)


def decode_inputs(
    slots_S: torch.Tensor, positions_S: torch.Tensor, pages_GNB: torch.Tensor, block_size: int, pdl: bool = False
) -> DecodeInputs:
    """See `KernelTable.decode_inputs`. Tables are written as far as the context reaches."""
    rows, (groups, _, blocks), device = len(slots_S), pages_GNB.shape, slots_S.device
    inputs = DecodeInputs(
        torch.empty(rows, dtype=torch.int32, device=device),
        torch.empty(groups, rows, dtype=torch.int64, device=device),
        torch.empty(groups, rows, blocks, dtype=torch.int32, device=device),
    )
    assert pages_GNB.stride(2) == slots_S.stride(0) == positions_S.stride(0) == 1
    if rows:
        _decode_inputs[(rows,)](
            slots_S, positions_S, pages_GNB, inputs.context_S, inputs.places_GS, inputs.tables_GSB, groups, rows,
            pages_GNB.stride(0), pages_GNB.stride(1), inputs.tables_GSB.stride(0), inputs.tables_GSB.stride(1),
            PAGE=block_size, COPIED=_COPIED, PDL=pdl, num_warps=4, **early(pdl),
        )  # fmt: skip
    return inputs
