"""y = (x W^T) * scale + bias in C: weights of bf16 or float8 in the layout of native/gemm.h.

T tokens, K inputs, N outputs.
"""

from __future__ import annotations

import ctypes

import torch
import torch.nn.functional as F

from remuda.kernels import table
from remuda.kernels.linear import torch as torch_linear
from remuda.kernels.native import runtime
from remuda.kernels.native.structs import PackedWeight

FP8 = torch.float8_e4m3fn
DTYPES = (torch.bfloat16, FP8)  # of weights; activations are bf16
_BF16, _FLOAT32 = 0, 1  # gemm.h output_kind


def make_linear(
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor | None = None,
    scale_N: torch.Tensor | None = None,
    gated: bool = False,
) -> table.Linear:
    """Packed for C where it serves weights of this dtype; torch serves the others."""
    kind = Linear if weight_NK.dtype in DTYPES else torch_linear.Linear
    return kind(weight_NK, bias_N, scale_N, gated)


def repack_linear(linear: table.Linear) -> table.Linear:
    if not isinstance(linear, torch_linear.Linear):
        return linear
    return make_linear(linear.weight_NK, linear.bias_N, linear.scale_N, linear.gated)


def packed_order(value_N: torch.Tensor | None, gated: bool) -> torch.Tensor | None:
    """Per-column float32 values in the order of the packed columns: whole pairs of blocks, gate and up alternating."""
    if value_N is None:
        return None
    value_N = value_N.float()
    if not gated:
        return F.pad(value_N, (0, -value_N.numel() % 32)).contiguous()
    halves = [F.pad(half, (0, -half.numel() % 32)).view(-1, 16) for half in value_N.chunk(2)]
    return torch.stack(halves, dim=1).flatten()


def pack(weight_NK: torch.Tensor, packed: torch.Tensor, gated: bool) -> None:
    """Write the packed form of a strided view into `packed` (one dimension of it must be dense)."""
    n, k = weight_NK.shape
    runtime.library.remuda_pack(
        packed.data_ptr(), weight_NK.data_ptr(), n, k, weight_NK.stride(0), weight_NK.stride(1), gated,
        packed.dtype is FP8,
    )  # fmt: skip


def packed_size(n: int, k: int, gated: bool) -> int:
    """Values of a packed [n, k]."""
    return int(runtime.library.remuda_packed_size(n, k, gated))


def describe(
    packed: torch.Tensor,
    n: int,
    k: int,
    gated: bool,
    scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> PackedWeight:
    """The C view of a packed weight; whoever asks keeps the tensors alive."""
    k_tiles = -(-k // 32)
    return PackedWeight(
        data=packed.data_ptr(),
        scale=None if scale is None else scale.data_ptr(),
        bias=None if bias is None else bias.data_ptr(),
        n=n // 2 if gated else n,
        k=k,
        k_tiles=k_tiles,
        panels=packed_size(n, k, gated) // (k_tiles * 1024),
        gated=gated,
        fp8=packed.dtype is FP8,
    )


class Linear:
    def __init__(
        self, weight_NK: torch.Tensor, bias_N: torch.Tensor | None, scale_N: torch.Tensor | None, gated: bool
    ) -> None:
        n, k = weight_NK.shape
        self._packed = runtime.weights.empty(packed_size(n, k, gated), dtype=weight_NK.dtype)
        pack(weight_NK, self._packed, gated)
        self._bias, self._scale = packed_order(bias_N, gated), packed_order(scale_N, gated)
        self._weight = describe(self._packed, n, k, gated, self._scale, self._bias)
        self._address = ctypes.addressof(self._weight)
        self._outputs = n // 2 if gated else n
        self._multiply = runtime.library.remuda_linear

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        return self._run(x_TK, torch.bfloat16, _BF16)

    def to_float32(self, x_TK: torch.Tensor) -> torch.Tensor:
        return self._run(x_TK, torch.float32, _FLOAT32)

    def _run(self, x_TK: torch.Tensor, dtype: torch.dtype, kind: int) -> torch.Tensor:
        if x_TK.dim() != 2:
            return self._run(x_TK.reshape(-1, x_TK.shape[-1]), dtype, kind).view(*x_TK.shape[:-1], self._outputs)
        if x_TK.stride(1) != 1:
            x_TK = x_TK.contiguous()
        rows, outputs = x_TK.shape[0], self._outputs
        y_TN = torch.empty((rows, outputs), dtype=dtype)
        self._multiply(self._address, x_TK.data_ptr(), x_TK.stride(0), rows, y_TN.data_ptr(), outputs, kind)
        return y_TN
