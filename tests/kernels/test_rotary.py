"""Rope, head norms, query temperature and the write into pages against naive loops."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from remuda.kernels.table import HeadLayout, HeadNorm
from tests.kernels.batch import make_batch
from tests.kernels.conftest import Served, normal
from tests.kernels.naive import rotary as naive

ROWS, BLOCK, WIDTH, HEADS, KV_HEADS = [(1, 9), (6, 12)], 5, 16, 4, 2
NORMS = {
    "no norm": None,
    "plain norm after rope": HeadNorm(1e-5),
    "plain norm before rope": HeadNorm(1e-5, before_rope=True),
    "weighted norm before rope": HeadNorm(1e-5, True, normal(WIDTH, seed=8), normal(WIDTH, seed=9)),
    "weighted norm after rope": HeadNorm(1e-5, False, normal(WIDTH, seed=8), normal(WIDTH, seed=9)),
}


def in_dtype(norm: HeadNorm | None, dtype: torch.dtype) -> HeadNorm | None:
    if norm is None or norm.q_weight_D is None or norm.k_weight_D is None:
        return norm
    return HeadNorm(norm.eps, norm.before_rope, norm.q_weight_D.to(dtype), norm.k_weight_D.to(dtype))


@cache
def case(interleaved: bool, norm: str, tuned: bool, rope: bool) -> tuple[list[torch.Tensor], tuple[torch.Tensor, ...]]:
    qkv = normal(7, (HEADS + 2 * KV_HEADS) * WIDTH)
    angles, temperature = normal(7, WIDTH // 2, seed=1) * 3, normal(7, seed=2).abs() + 0.5
    layout = HeadLayout(HEADS, KV_HEADS, WIDTH, interleaved)
    expected = naive.finish(qkv, angles if rope else None, temperature if tuned else None, layout, NORMS[norm])
    return [qkv, torch.cat((angles.cos(), angles.sin()), -1), temperature], expected


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("tuned", [True, False])
@pytest.mark.parametrize("rope", [True, False])
def test_rope_kv(served: Served, interleaved: bool, norm: str, tuned: bool, rope: bool) -> None:
    (qkv, cos_sin, temperature), (queries, keys, values) = case(interleaved, norm, tuned, rope)
    layout = HeadLayout(HEADS, KV_HEADS, WIDTH, interleaved)
    batch = make_batch(ROWS, BLOCK)
    k, v = (torch.zeros(batch.pages, KV_HEADS, BLOCK, WIDTH, dtype=served.dtype) for _ in range(2))
    got = served.kernels.attention(layout).rope_kv(
        qkv.to(served.dtype), cos_sin if rope else None, temperature if tuned else None, layout, batch, 1, k, v,
        in_dtype(NORMS[norm], served.dtype),
    )  # fmt: skip
    served.close(got, queries)
    pages_T, offsets_T = batch.places_GT[1] // BLOCK, batch.places_GT[1] % BLOCK
    served.close(k[pages_T, :, offsets_T], keys)
    assert torch.equal(v[pages_T, :, offsets_T].double(), values)
    assert k.count_nonzero() == v.count_nonzero() == 7 * KV_HEADS * WIDTH  # nothing else is written
