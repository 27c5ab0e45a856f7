"""Norms, gated activation and routing against torch's."""

from __future__ import annotations

import pytest
import torch

from remuda.kernels.activation import native as activation
from remuda.kernels.activation import torch as torch_activation
from remuda.kernels.moe import native as moe
from remuda.kernels.moe import torch as torch_moe
from remuda.kernels.norm import native as norm
from remuda.kernels.norm import torch as torch_norm

SHAPES = [(1, 16), (1, 5120), (3, 7), (5, 256), (130, 768), (64, 1000)]
CLOSE = {"rtol": 1e-2, "atol": 1e-2}


@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm(shape: tuple[int, int]) -> None:
    x, weight = torch.randn(shape).bfloat16(), torch.randn(shape[1]).bfloat16()
    torch.testing.assert_close(norm.rms_norm(x, weight, 1e-5), torch_norm.rms_norm(x, weight, 1e-5), **CLOSE)
    torch.testing.assert_close(norm.rms_norm(x, None, 1e-5), torch_norm.rms_norm(x, None, 1e-5), **CLOSE)


@pytest.mark.parametrize("shape", SHAPES)
def test_add_rms_norm(shape: tuple[int, int]) -> None:
    x, residual, weight = torch.randn(shape).bfloat16(), torch.randn(shape).bfloat16(), torch.randn(shape[1]).bfloat16()
    expected_y, expected_sum = torch_norm.add_rms_norm(x, residual, weight, 1e-5)
    y, total = norm.add_rms_norm(x.clone(), residual.clone(), weight, 1e-5)
    assert torch.equal(total, expected_sum)
    torch.testing.assert_close(y, expected_y, **CLOSE)


@pytest.mark.parametrize("shape", [(1, 32), (3, 30), (200, 512)])
def test_silu_mul(shape: tuple[int, int]) -> None:
    gate_up = (torch.randn(shape) * 8).bfloat16()
    torch.testing.assert_close(activation.silu_mul(gate_up), torch_activation.silu_mul(gate_up), rtol=2e-2, atol=1e-3)


def test_silu_of_extreme_gates() -> None:
    gate_up = torch.tensor([[-3e38, -100.0, 0.0, 100.0, 3e38, *[1.0] * 5]]).bfloat16()
    expected = torch.tensor([[0.0, 0.0, 0.0, 100.0, 3e38]]).bfloat16()
    torch.testing.assert_close(activation.silu_mul(gate_up), expected)


@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(1, 4, 1), (9, 128, 1), (5, 16, 3), (2, 2, 2)])
def test_route_sigmoid(tokens: int, experts: int, top_k: int) -> None:
    logits = torch.randn(tokens, experts).bfloat16()
    expected_expert, expected_weight = torch_moe.route_sigmoid(logits, top_k)
    expert, weight = moe.route_sigmoid(logits, top_k)
    torch.testing.assert_close(weight, expected_weight)
    assert torch.equal(logits.gather(1, expert), logits.gather(1, expected_expert))
    assert all(len(set(row)) == top_k for row in expert.tolist())
