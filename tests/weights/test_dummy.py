"""Made-up weights: what only config.json says, in every format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from remuda.models.registry import build_model, read_model_config
from remuda.parallel.collectives import SingleRank
from remuda.parallel.topology import Topology
from remuda.tiny import make_tiny
from tests.models.replica import Replica


@pytest.mark.parametrize("kind", ["maverick", "maverick-fp8", "qwen3-moe-int4"])
def test_a_model_of_random_weights_runs_and_is_the_same_every_time(tmp_path: Path, kind: str) -> None:
    make_tiny(kind, tmp_path, text={"num_hidden_layers": 2})
    replica, config = Replica(tmp_path), read_model_config(tmp_path, "float32")
    logits = []
    for name in "ab":
        model = build_model(config, Topology(1, 1, 0, 0, 0, 2, 2), SingleRank())
        report = model.load(load_format="dummy")
        assert report.checkpoint_bytes_read == 0 and report.weight_bytes == model.weight_bytes
        replica.stages[0][0] = model
        logits.append(replica.forward([(name, [3, 5, 7])]))
    assert torch.isfinite(logits[0]).all() and logits[0].std() > 0
    assert torch.equal(*logits)
