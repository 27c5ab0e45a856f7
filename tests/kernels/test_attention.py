"""Attention over pages against naive loops: mixed batches, every kind of visibility."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from remuda.kernels.table import HeadLayout
from tests.kernels.batch import Batch, make_batch
from tests.kernels.conftest import Served, normal
from tests.kernels.naive import attention as naive

ROWS = {  # (queries, context)
    "one decode": ((1, 1),),
    "decodes": ((1, 1), (1, 7), (1, 8), (1, 9), (1, 33)),
    "prompts": ((5, 5), (9, 20), (3, 16)),
    "mixed": ((1, 17), (1, 16), (40, 40), (8, 24), (2, 25), (9, 9)),
    "a piece of one token after a prompt": ((12, 12), (1, 30)),
}
WIDTH, SCALE = 16, 0.3


@cache
def case(
    rows: tuple[tuple[int, int], ...], heads: int, kv_heads: int, block: int, chunk: int | None, window: int | None
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """q, k, v and the naive result; group 1 of the batch."""
    batch = make_batch(list(rows), block)
    pages = (batch.pages, kv_heads, block, WIDTH)
    inputs = [normal(batch.tokens, heads, WIDTH, seed=3), normal(*pages, seed=1), normal(*pages, seed=2)]
    return inputs, naive.paged_attention(*inputs, batch, 1, chunk, SCALE, window)


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize(
    ("chunk", "window"), [(None, None), (8, None), (13, None), (None, 1), (None, 8), (None, 13), (None, 99)]
)
@pytest.mark.parametrize(("heads", "kv_heads", "block"), [(4, 2, 4), (3, 3, 5), (4, 1, 16)])
def test_paged_attention(
    served: Served, rows: tuple[tuple[int, int], ...], heads: int, kv_heads: int, block: int,
    chunk: int | None, window: int | None,
) -> None:  # fmt: skip
    inputs, expected = case(rows, heads, kv_heads, block, chunk, window)
    attention = served.kernels.attention(HeadLayout(heads, kv_heads, WIDTH, interleaved=False), window)
    q, k, v = (x.to(served.dtype) for x in inputs)
    served.close(attention.paged_attention(q, k, v, make_batch(list(rows), block), 1, chunk, SCALE, window), expected)


@pytest.mark.parametrize(("chunk", "window"), [(16, None), (None, 3)])
def test_what_was_given_back_but_is_still_in_the_table_is_never_read(
    served: Served, chunk: int | None, window: int | None
) -> None:
    """Entries before what is visible are stale: pages that another sequence owns by now."""
    rows, block = ((1, 19), (3, 21)), 4
    attention = served.kernels.attention(HeadLayout(4, 2, WIDTH, interleaved=False), window).paged_attention
    q, k, v = (x.to(served.dtype) for x in case(rows, 4, 2, block, chunk, window)[0])

    def run(batch: Batch) -> torch.Tensor:
        return attention(q, k, v, batch, 1, chunk, SCALE, window)

    stale = make_batch(list(rows), block)
    stale.tables_GSB[:, :, :4] = 0
    assert torch.equal(run(stale), run(make_batch(list(rows), block)))
