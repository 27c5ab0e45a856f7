"""Mixtral against transformers, in float32. Prompts whole, in pieces and decoded: test_text.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from remuda.config.model import MoEConfig
from remuda.models.mixtral.tiny import mixtral_config
from remuda.models.registry import read_model_config
from remuda.protocol.errors import ConfigError
from remuda.tiny import make_tiny
from tests.models.conftest import PROMPT
from tests.models.reference import load_reference, reference_logits
from tests.models.replica import Replica
from tests.models.test_text import TOLERANCE, in_pieces


def test_the_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(mixtral_config({"sliding_window": 64}, {})))
    model = read_model_config(tmp_path)
    assert model.moe == MoEConfig(8, 2, intermediate_size=128, shared_intermediate_size=0, renormalize=True)
    assert all(layer.moe and layer.attention.window == 64 for layer in model.layers)
    (tmp_path / "config.json").write_text(json.dumps(mixtral_config({"num_experts_per_tok": 9}, {})))
    with pytest.raises(ConfigError, match=r"num_experts_per_tok \(9\) exceeds num_local_experts \(8\)"):
        read_model_config(tmp_path)


@pytest.mark.parametrize("layout", [{"tp": 2}, {"tp": 4, "ep": True}, {"partition": (1, 4, 1)}], ids=str)
def test_layouts(tiny: Callable[[str], Path], expected: Callable[[str], torch.Tensor], layout: dict[str, Any]) -> None:
    replica = Replica(tiny("mixtral"), **layout)
    assert (in_pieces(replica, "a", [50, 60, 29, 1]) - expected("mixtral")).abs().max() < TOLERANCE


def test_a_window_and_a_checkpoint_that_transformers_has_saved_again(tmp_path: Path) -> None:
    make_tiny("mixtral", tmp_path / "made", text={"num_hidden_layers": 3, "sliding_window": 37, "num_local_experts": 5})
    reference = load_reference(tmp_path / "made")
    want = reference_logits(reference, PROMPT).log_softmax(-1)
    reference.save_pretrained(tmp_path / "saved")
    for path in (tmp_path / "made", tmp_path / "saved"):
        assert (in_pieces(Replica(path, tp=2), "a", [100, 40]) - want).abs().max() < TOLERANCE
