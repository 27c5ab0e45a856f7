"""Whole models in bfloat16 on the native table, with what it leaves to torch, against themselves in float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from remuda.kernels.table import KernelTable
from remuda.tiny import make_tiny
from tests.models.replica import Replica

PROMPT = torch.randint(0, 1000, (90,), generator=torch.Generator().manual_seed(2)).tolist()
KINDS = ("scout-fp8", "llama3", "qwen3", "qwen3-moe")


def log_probabilities(replica: Replica) -> torch.Tensor:
    """Of PROMPT, in two pieces and ten decodes."""
    pieces = [PROMPT[:50], PROMPT[50:80], *([token] for token in PROMPT[80:])]
    return torch.cat([replica.forward([("a", piece)]) for piece in pieces]).log_softmax(-1)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, torch.Tensor]]:
    """kind -> checkpoint, log-probabilities in float32."""
    root = tmp_path_factory.mktemp("native")

    @cache
    def make(kind: str) -> tuple[Path, torch.Tensor]:
        make_tiny(kind, root / kind, text={"num_hidden_layers": 4})
        return root / kind, log_probabilities(Replica(root / kind))

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_stays_near_float32(
    native: KernelTable, exact: Callable[[str], tuple[Path, torch.Tensor]], kind: str
) -> None:
    path, want = exact(kind)
    replica = Replica(path, dtype="bfloat16")
    replica.stages[0][0].bind(native)
    got = log_probabilities(replica)
    best = want.topk(5, dim=-1).indices
    difference = (got.gather(1, best) - want.gather(1, best)).abs()
    assert difference.mean() < 0.08 and difference.quantile(0.95) < 0.3
    lead = want.topk(2, dim=-1).values
    clear = lead[:, 0] - lead[:, 1] > 0.7
    assert torch.equal(got.argmax(-1)[clear], want.argmax(-1)[clear])
