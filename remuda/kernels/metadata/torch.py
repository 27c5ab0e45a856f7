"""Attention metadata of a decode step in torch. S rows, N slots, G KV groups, B blocks of a table."""

from __future__ import annotations

import torch

from remuda.kernels.table import DecodeInputs


def decode_inputs(
    slots_S: torch.Tensor, positions_S: torch.Tensor, pages_GNB: torch.Tensor, block_size: int
) -> DecodeInputs:
    """See `KernelTable.decode_inputs`."""
    tables_GSB = pages_GNB.index_select(1, slots_S)
    block_GS1 = (positions_S // block_size).expand(len(tables_GSB), -1).unsqueeze(2)
    page_GS = tables_GSB.gather(2, block_GS1).squeeze(2)
    return DecodeInputs((positions_S + 1).int(), page_GS.long() * block_size + positions_S % block_size, tables_GSB)
