"""Native kernels are compared with the naive ones wherever this machine can build them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from remuda.kernels.native import build, runtime

collect_ignore = (
    [] if build.unavailable_reason() is None else [path.name for path in Path(__file__).parent.glob("test_*.py")]
)


@pytest.fixture(autouse=True, params=[1, 2], ids=["threads1", "threads2"])
def native(request: pytest.FixtureRequest) -> Iterator[None]:
    """The library serves in this test, on one and on two threads."""
    torch.manual_seed(0)
    runtime.load(build.build(), threads=request.param)
    yield
    runtime.unload()
