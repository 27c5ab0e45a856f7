"""Packed 4-bit weights, in torch and in Triton's interpreter, against the numbers they were packed from."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from remuda.kernels.linear.int4 import Int4Linear, unpack_int4
from remuda.kernels.linear.triton_int4 import StreamedInt4Linear
from tests.kernels import interpreter  # noqa: F401


def packed(outputs: int, groups: int, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(weight [N, K], words, scales) with words packed value by value as the format says."""
    made = torch.Generator().manual_seed(outputs)
    value_NK = torch.randint(-8, 8, (outputs, groups * group), generator=made)
    scale_NG = torch.rand(outputs, groups, generator=made) + 0.1
    words = [
        [sum((row[w * 8 + i] + 8) << (4 * i) for i in range(8)) for w in range(len(row) // 8)]
        for row in value_NK.tolist()
    ]
    assert torch.equal(unpack_int4(torch.tensor(words).to(torch.int32)).long(), value_NK)
    weight_NK = value_NK * scale_NG.repeat_interleave(group, dim=1)
    return weight_NK, torch.tensor(words).to(torch.int32), scale_NG


@pytest.mark.parametrize(("outputs", "groups", "group"), [(6, 1, 32), (12, 3, 16), (10, 2, 128)])
def test_products(outputs: int, groups: int, group: int) -> None:
    weight_NK, words, scale_NG = packed(outputs, groups, group)
    x, bias = torch.randn(3, groups * group), torch.randn(outputs)
    want = F.linear(x, weight_NK)
    gate, up = (want + bias).chunk(2, dim=-1)
    for kind in (Int4Linear, StreamedInt4Linear):
        torch.testing.assert_close(kind(words, scale_NG)(x), want, rtol=1e-4, atol=1e-4)
        gated = kind(words, scale_NG, bias, gated=True)(x)
        torch.testing.assert_close(gated, F.silu(gate) * up, rtol=1e-4, atol=1e-4)
    many = torch.randn(9, groups * group)
    torch.testing.assert_close(
        StreamedInt4Linear(words, scale_NG)(many), F.linear(many, weight_NK), rtol=1e-4, atol=1e-4
    )
