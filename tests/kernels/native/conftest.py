"""Native kernels are compared with torch's wherever this machine can build them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from remuda.kernels.native import build, runtime
from remuda.kernels.select import native_table
from remuda.kernels.table import KernelTable

collect_ignore = (
    [] if build.unavailable_reason() is None else [path.name for path in Path(__file__).parent.glob("test_*.py")]
)


@pytest.fixture(
    autouse=True,
    params=[(target, threads) for target in build.targets() for threads in (1, 2)],
    ids=lambda p: f"{p[0].name.lower()}-threads{p[1]}",
)
def native(request: pytest.FixtureRequest) -> KernelTable:
    """The native table, for each target of this processor, on one and on two threads."""
    torch.manual_seed(0)
    target, threads = request.param
    runtime.load(build.build(target=target), threads)
    return native_table()
