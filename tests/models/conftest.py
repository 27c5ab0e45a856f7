"""Checkpoints of every kind and what transformers says about one prompt on each, made once per session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from remuda.tiny import make_tiny
from tests.models.reference import load_reference, reference_logits

PROMPT = torch.randint(0, 1000, (140,), generator=torch.Generator().manual_seed(1)).tolist()  # two chunks and a bit


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """kind -> checkpoint directory."""
    root = tmp_path_factory.mktemp("models")

    @cache
    def make(kind: str) -> Path:
        make_tiny(kind, root / kind)
        return root / kind

    return make


@pytest.fixture(scope="session")
def expected(tiny: Callable[[str], Path]) -> Callable[[str], torch.Tensor]:
    """kind -> reference log-probabilities of PROMPT in float32."""

    @cache
    def compute(kind: str) -> torch.Tensor:
        return reference_logits(load_reference(tiny(kind)), PROMPT).log_softmax(-1)

    return compute
