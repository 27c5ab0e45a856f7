"""Packed linear layers against float32 products of the same bf16 values."""

from __future__ import annotations

import pytest
import torch

from remuda.kernels.activation import torch as activation
from remuda.kernels.linear.native import make_linear
from remuda.kernels.table import Linear

SHAPES = [(1, 1), (7, 5), (16, 64), (32, 32), (48, 33), (96, 2048), (384, 256), (100, 1100), (33, 4100)]
ROWS = [1, 2, 3, 4, 5, 15, 16, 17, 33, 64, 65, 100, 300]


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_float32_results_are_exact_sums(n: int, k: int) -> None:
    weight_NK = torch.randn(n, k).bfloat16()
    linear: Linear = make_linear(weight_NK)
    for rows in ROWS:
        x_TK = torch.randn(rows, k).bfloat16()
        expected = x_TK.float() @ weight_NK.float().T
        torch.testing.assert_close(linear.to_float32(x_TK), expected, rtol=1e-4, atol=1e-5 * k)


def test_every_float8_value_is_widened_exactly() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    numbers_NK = torch.where(codes % 128 == 127, 0, codes).view(64, 4).repeat(1, 10).view(torch.float8_e4m3fn)
    kept_NK = make_linear(numbers_NK, None, torch.ones(64)).to_float32(torch.eye(40).bfloat16()).T
    assert torch.equal(kept_NK, numbers_NK.float())
    nan_NK = torch.tensor([[127], [255]], dtype=torch.uint8).view(torch.float8_e4m3fn)
    assert make_linear(nan_NK, None, torch.ones(2)).to_float32(torch.ones(1, 1).bfloat16()).isnan().all()


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_float8_results_are_those_of_the_same_weights_in_bf16(n: int, k: int) -> None:
    weight_NK, scale_N = torch.randn(n, k).to(torch.float8_e4m3fn), torch.rand(n) + 0.5
    float8, wide = make_linear(weight_NK, None, scale_N), make_linear(weight_NK.bfloat16(), None, scale_N)
    for rows in ROWS:
        x_TK = torch.randn(rows, k).bfloat16()
        torch.testing.assert_close(float8.to_float32(x_TK), wide.to_float32(x_TK), rtol=1e-4, atol=1e-5 * k)


@pytest.mark.parametrize(("n", "k"), [(64, 48), (34, 100), (512, 1200)])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 20, 70])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_bias_scale_and_gate(n: int, k: int, gated: bool, rows: int, dtype: torch.dtype) -> None:
    weight_NK, bias_N, scale_N = torch.randn(n, k).to(dtype), torch.randn(n).bfloat16(), torch.rand(n) + 0.5
    x_TK = torch.randn(rows, k).bfloat16()
    expected = (x_TK.float() @ weight_NK.float().T) * scale_N + bias_N.float()
    if gated:
        expected = activation.silu_mul(expected)
    actual = make_linear(weight_NK, bias_N, scale_N, gated=gated)(x_TK)
    assert actual.dtype is torch.bfloat16
    torch.testing.assert_close(actual.float(), expected, rtol=8e-3, atol=2e-3 * k**0.5)


def test_input_may_be_a_strided_view_of_any_rank() -> None:
    weight_NK, wide = torch.randn(40, 64).bfloat16(), torch.randn(3, 7, 128).bfloat16()
    linear = make_linear(weight_NK)
    torch.testing.assert_close(linear(wide[..., 64:]), wide[..., 64:] @ weight_NK.T, rtol=2e-2, atol=2e-2)
    assert linear(wide[..., :64]).shape == (3, 7, 40)
    assert linear(wide[0, :0, :64]).shape == (0, 40)


def test_repeated_calls_give_the_same_bits() -> None:
    linear, x_TK = make_linear(torch.randn(300, 1500).bfloat16()), torch.randn(90, 1500).bfloat16()
    first = linear(x_TK)
    assert all(torch.equal(linear(x_TK), first) for _ in range(5))


def test_float32_layers_stay_with_torch() -> None:
    weight_NK, x_TK = torch.randn(8, 8), torch.randn(2, 8)
    assert torch.equal(make_linear(weight_NK)(x_TK), torch.nn.functional.linear(x_TK, weight_NK))
