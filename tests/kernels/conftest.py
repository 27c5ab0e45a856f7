"""The tables that this machine can serve, each with the dtype that it is asked for."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from remuda.kernels.native import build, runtime
from remuda.kernels.select import native_table, torch_table
from remuda.kernels.table import KernelTable

NATIVE = build.targets() if build.unavailable_reason() is None else []
FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}
BFLOAT16 = {"rtol": 2e-2, "atol": 2e-2}


@dataclass(frozen=True)
class Served:
    """A table, and how near to the naive loops its results in `dtype` are, given inputs that both dtypes hold."""

    kernels: KernelTable
    dtype: torch.dtype

    def close(self, actual: torch.Tensor, expected: torch.Tensor) -> None:
        assert actual.dtype is self.dtype
        torch.testing.assert_close(actual.double(), expected, **(FLOAT32 if self.dtype is torch.float32 else BFLOAT16))


@pytest.fixture(params=["torch-float32", "torch-bfloat16", *(f"native-{target.name.lower()}" for target in NATIVE)])
def served(request: pytest.FixtureRequest) -> Served:
    name, _, form = request.param.partition("-")
    if name == "torch":
        return Served(torch_table(), getattr(torch, form))
    runtime.load(build.build(target=build.Target[form.upper()]), threads=2)
    return Served(native_table(), torch.bfloat16)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """float32 numbers that bfloat16 holds too."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16().float()
