"""What tests of every folder share: tiny checkpoints of the package's own maker, one of each per test process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Triton reads this when it is imported. `make test-gpu` sets it to 0.
os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def tiny_maverick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama 4 with images: 8 layers, 8 experts, bfloat16."""
    from remuda.tiny import make_tiny  # imports torch, which tests of the control plane never need

    path = tmp_path_factory.mktemp("checkpoints") / "maverick"
    make_tiny("maverick", path)
    return path
