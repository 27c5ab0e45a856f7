"""Norms, activations, linear layers and the embedding against naive loops."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.conftest import Served, normal
from tests.kernels.naive import activation, linear, norm

SHAPES = [(1, 16), (3, 7), (5, 48)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weighted", [True, False])
def test_rms_norm(served: Served, shape: tuple[int, int], weighted: bool) -> None:
    x, weight = normal(*shape), normal(shape[1], seed=1) if weighted else None
    got = served.kernels.rms_norm(x.to(served.dtype), weight.to(served.dtype) if weight is not None else None, 1e-5)
    served.close(got, norm.rms_norm(x, weight, 1e-5))


@pytest.mark.parametrize("shape", SHAPES)
def test_add_rms_norm(served: Served, shape: tuple[int, int]) -> None:
    x, residual, weight = (normal(*s, seed=i).to(served.dtype) for i, s in enumerate((shape, shape, shape[1:])))
    expected, total = norm.add_rms_norm(x, residual, weight, 1e-5)
    got, new_residual = served.kernels.add_rms_norm(x.clone(), residual.clone(), weight, 1e-5)
    served.close(got, expected)
    assert torch.equal(new_residual, total)


@pytest.mark.parametrize("shape", SHAPES)
def test_layer_norm(served: Served, shape: tuple[int, int]) -> None:
    x, weight, bias = normal(*shape), normal(shape[1], seed=1), normal(shape[1], seed=2)
    got = served.kernels.layer_norm(*(t.to(served.dtype) for t in (x, weight, bias)), 1e-5)
    served.close(got, norm.layer_norm(x, weight, bias, 1e-5))


@pytest.mark.parametrize("shape", [(1, 32), (3, 30)])
def test_activations(served: Served, shape: tuple[int, int]) -> None:
    x = normal(*shape) * 4
    served.close(served.kernels.silu_mul(x.to(served.dtype)), activation.silu_mul(x))
    served.close(served.kernels.gelu(x.to(served.dtype)), activation.gelu(x))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("stored", ["plain", "scaled", "float8"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("tokens", "inputs", "outputs"), [(1, 5, 6), (4, 40, 34), (20, 64, 32)])
def test_linear(served: Served, bias: bool, stored: str, gated: bool, tokens: int, inputs: int, outputs: int) -> None:
    kept = torch.float8_e4m3fn if stored == "float8" else served.dtype
    weight_NK = (normal(outputs, inputs) * inputs**-0.5).to(
        torch.float8_e4m3fn if stored == "float8" else torch.bfloat16
    )
    x_TK, bias_N = normal(tokens, inputs, seed=1), normal(outputs, seed=2) if bias else None
    scale_N = None if stored == "plain" else normal(outputs, seed=3).abs()
    made = served.kernels.make_linear(
        weight_NK.to(kept), bias_N.to(served.dtype) if bias_N is not None else None, scale_N, gated
    )
    expected = linear.linear(x_TK, weight_NK.float(), bias_N, scale_N, gated)
    served.close(made(x_TK.to(served.dtype)), expected)
    wide = made.to_float32(x_TK.to(served.dtype))
    assert wide.dtype is torch.float32
    torch.testing.assert_close(wide.double(), expected, rtol=2e-2, atol=2e-2)


def test_a_repacked_layer_computes_the_same_and_lets_the_former_go(served: Served) -> None:
    from remuda.kernels.select import torch_table

    weight_NK, x_TK = normal(6, 5).to(served.dtype), normal(4, 5, seed=1).to(served.dtype)
    former = torch_table().make_linear(weight_NK)
    made = served.kernels.repack_linear(former)
    torch.testing.assert_close(made(x_TK), former(x_TK), rtol=2e-2, atol=2e-2)
    assert served.kernels.repack_linear(made) is made


def test_embedding(served: Served) -> None:
    weight_VH, ids_T = normal(9, 4).to(served.dtype), torch.tensor([8, 0, 3, 3])
    rows_TH = served.kernels.embedding(ids_T, weight_VH)
    assert all(torch.equal(row, weight_VH[i]) for row, i in zip(rows_TH, ids_T.tolist(), strict=True))
    assert rows_TH.data_ptr() != weight_VH.data_ptr()
