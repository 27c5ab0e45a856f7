"""Routed experts against torch's in float32."""

from __future__ import annotations

import pytest
import torch

from remuda.kernels.moe.native import make_experts
from remuda.kernels.moe.torch import Experts as TorchExperts
from remuda.kernels.table import Experts

EXPERTS = 6


def both(hidden: int, intermediate: int, scaled: bool, dtype: torch.dtype = torch.bfloat16) -> tuple[Experts, Experts]:
    gate_up = (torch.randn(EXPERTS, hidden, 2 * intermediate) * hidden**-0.5).to(dtype)
    down = (torch.randn(EXPERTS, intermediate, hidden) * intermediate**-0.5).to(dtype)
    scales = (torch.rand(EXPERTS, 2 * intermediate) + 0.5, torch.rand(EXPERTS, hidden) + 0.5) if scaled else None
    return TorchExperts(gate_up.float(), down.float(), scales), make_experts(gate_up, down, scales)


@pytest.mark.parametrize("kept", ["bf16", "bf16 scaled", "fp8"])
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize(("hidden", "intermediate"), [(64, 32), (48, 24), (256, 512), (96, 1200)])
def test_experts(hidden: int, intermediate: int, top_k: int, kept: str) -> None:
    exact, native = both(hidden, intermediate, kept != "bf16", torch.float8_e4m3fn if kept == "fp8" else torch.bfloat16)
    for tokens in (1, 2, 7, 40, 300):
        x_TH, weight_Tk = torch.randn(tokens, hidden).bfloat16(), torch.rand(tokens, top_k)
        expert_Tk = torch.stack([torch.randperm(EXPERTS)[:top_k] for _ in range(tokens)])
        expert_Tk[torch.rand(tokens, top_k) < 0.2] = -1
        actual, expected = native(x_TH, expert_Tk, weight_Tk), exact(x_TH.float(), expert_Tk, weight_Tk)
        torch.testing.assert_close(actual.float(), expected, rtol=2e-2, atol=2e-2)
        assert torch.equal(actual, native(x_TH, expert_Tk, weight_Tk))


def test_a_rank_without_any_chosen_expert_adds_nothing() -> None:
    _, native = both(64, 32, False)
    y_TH = native(torch.randn(3, 64).bfloat16(), torch.full((3, 1), -1), torch.rand(3, 1))
    assert torch.equal(y_TH, torch.zeros(3, 64).bfloat16())


def test_one_popular_expert() -> None:
    exact, native = both(64, 32, False)
    x_TH, expert_T1 = torch.randn(700, 64).bfloat16(), torch.full((700, 1), 4)
    weight_T1 = torch.rand(700, 1)
    torch.testing.assert_close(
        native(x_TH, expert_T1, weight_T1).float(), exact(x_TH.float(), expert_T1, weight_T1), rtol=2e-2, atol=2e-2
    )
