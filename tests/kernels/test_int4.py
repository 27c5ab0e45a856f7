"""Packed 4-bit weights, in torch and in Triton's interpreter, against the numbers they were packed from."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from remuda.kernels.linear.int4 import Int4Linear, unpack_int4
from remuda.kernels.linear.triton_int4 import StreamedInt4Linear
from remuda.kernels.moe.int4 import Int4Experts
from remuda.kernels.moe.triton import int4 as triton_experts
from remuda.kernels.table import Weighting
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


@pytest.mark.parametrize("weighting", Weighting)
@pytest.mark.parametrize("tokens", [2, 30])
def test_experts(weighting: Weighting, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In torch and in Triton, there two experts at a time, of five."""
    monkeypatch.setattr(triton_experts, "_WIDENED_BYTES", 2 * 4 * (64 * 32 + 32 * 32))
    experts, hidden, width = 5, 32, 32
    up, down = packed(experts * 2 * width, 2, 16), packed(experts * hidden, 2, 16)
    gate_up_EJH, down_EHI = up[0].view(experts, 2 * width, hidden), down[0].view(experts, hidden, width)
    packed_up = up[1].view(experts, 2 * width, -1), up[2].view(experts, 2 * width, -1)
    packed_down = down[1].view(experts, hidden, -1), down[2].view(experts, hidden, -1)
    expert_T1 = torch.arange(tokens).remainder(experts + 1).sub(1).unsqueeze(1)  # -1: another rank's
    x_TH, weight_T1 = torch.randn(tokens, hidden), torch.rand(tokens, 1) + 0.5
    want_TH = torch.zeros_like(x_TH)
    for t, expert in enumerate(expert_T1[:, 0].tolist()):
        if expert >= 0:
            x_H = x_TH[t] * weight_T1[t] if weighting is Weighting.INPUT else x_TH[t]
            gate, value = (gate_up_EJH[expert] @ x_H).chunk(2)
            y_H = down_EHI[expert] @ (F.silu(gate) * value)
            want_TH[t] = y_H if weighting is Weighting.INPUT else y_H * weight_T1[t]
    for kind in (Int4Experts, triton_experts.Int4Experts):
        got_TH = kind(packed_up, packed_down, weighting)(x_TH, expert_T1, weight_T1)
        torch.testing.assert_close(got_TH, want_TH, rtol=1e-3, atol=1e-4 * want_TH.abs().max().item())
