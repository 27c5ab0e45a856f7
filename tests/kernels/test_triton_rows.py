"""Kernels of a token's row (norm, activation, linear layers, head, embedding, metadata) in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from tests.kernels import interpreter  # noqa: F401
from tests.kernels.triton_checks import (
    check_argmax,
    check_decode_inputs,
    check_embedding,
    check_gemv,
    check_head,
    check_keep_tokens,
    check_norm,
    check_silu,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hidden", [64, 80])
def test_norm(dtype: torch.dtype, hidden: int) -> None:
    check_norm("cpu", dtype, 3, hidden)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [64, 2100])
def test_silu(dtype: torch.dtype, width: int) -> None:
    check_silu("cpu", dtype, 3, width)


@pytest.mark.parametrize(
    ("dtype", "rows", "outputs", "inputs", "gated", "bias", "fp8"),
    [
        (torch.float32, 1, 48, 256, False, True, "none"),
        (torch.float32, 3, 40, 200, True, False, "none"),
        (torch.bfloat16, 8, 130, 1024, False, False, "none"),
        (torch.bfloat16, 1, 128, 512, True, True, "none"),
        (torch.bfloat16, 5, 100, 1024, False, True, "weight"),
        (torch.bfloat16, 2, 128, 1024, True, False, "both"),
        (torch.bfloat16, 2, 1000, 160, False, False, "none"),
        (torch.bfloat16, 1, 18, 2560, False, True, "none"),  # too long to be held
        (torch.bfloat16, 1, 20, 2100, True, False, "weight"),
        (torch.bfloat16, 33, 100, 256, False, True, "none"),
    ],
)
def test_gemv(dtype: torch.dtype, rows: int, outputs: int, inputs: int, gated: bool, bias: bool, fp8: str) -> None:
    check_gemv("cpu", dtype, rows, outputs, inputs, gated, bias, fp8)


def test_one_row_of_a_large_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remuda.kernels.linear.triton._LONE_ROW_BYTES", 0)
    check_gemv("cpu", torch.bfloat16, 1, 130, 1024, True, True, "none")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [100, 9000])
def test_argmax(dtype: torch.dtype, vocab: int) -> None:
    check_argmax("cpu", dtype, 3, vocab)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "vocab"), [(1, 200), (8, 128)])
def test_head(dtype: torch.dtype, rows: int, vocab: int) -> None:
    check_head("cpu", dtype, rows, vocab, 256)


def test_keep_tokens() -> None:
    check_keep_tokens("cpu", 5)
    check_keep_tokens("cpu", 200)


def test_embedding() -> None:
    check_embedding("cpu", torch.bfloat16, 7, 80)
    check_embedding("cpu", torch.float32, 1, 2100)


def test_decode_inputs() -> None:
    check_decode_inputs("cpu", [3, 1, 0, 2], 600, 2)
    check_decode_inputs("cpu", [0], 4, 16)
