"""Tiny checkpoints of the package's own maker, one per test process."""

from __future__ import annotations

from pathlib import Path

import pytest
from remuda.weights.tiny import make_tiny


@pytest.fixture(scope="session")
def tiny_maverick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "maverick"
    make_tiny("maverick", path)
    return path
