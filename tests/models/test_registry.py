from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from remuda.config.huggingface import _READERS, read_model_config
from remuda.models import registry
from remuda.models.interfaces import Model, SupportsImages, SupportsPP
from remuda.models.registry import MODELS, build_model, check_architecture
from remuda.parallel.collectives import SingleRank
from remuda.parallel.topology import Topology
from remuda.protocol.errors import ConfigError


def test_every_readable_architecture_has_a_model() -> None:
    assert set(_READERS) == set(MODELS)


def test_an_unregistered_architecture_is_refused_with_the_list() -> None:
    with pytest.raises(ConfigError, match="'GPT2LMHeadModel' is not supported; supported: Llama4ForConditional"):
        check_architecture("GPT2LMHeadModel", pp_size=1)


def test_a_model_without_pipeline_support_runs_on_one_stage_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class OneStage(Model):
        pass

    monkeypatch.setitem(registry.MODELS, "OneStage", OneStage)
    check_architecture("OneStage", pp_size=1)
    with pytest.raises(ConfigError, match="does not support --pipeline-parallel-size 2; those that do: Llama4"):
        check_architecture("OneStage", pp_size=2)


def test_what_the_models_support() -> None:
    assert all(issubclass(model, SupportsPP) for model in MODELS.values())
    assert issubclass(MODELS["Llama4ForConditionalGeneration"], SupportsImages)
    assert not issubclass(MODELS["LlamaForCausalLM"], SupportsImages)


def test_a_layout_that_does_not_cut_the_heads_is_refused(tiny: Callable[[str], Path]) -> None:
    config = read_model_config(tiny("maverick"))
    with pytest.raises(ConfigError, match="8 attention heads; sizes that work: 1, 2, 4, 8"):
        build_model(config, Topology(3, 1, 0, 0, 0, 8, 8), SingleRank())


def test_building_allocates_nothing_and_sizes_any_rank(tiny: Callable[[str], Path]) -> None:
    config = read_model_config(tiny("maverick"))
    shares = [build_model(config, Topology(4, 1, rank, 0, 0, 8, 8), SingleRank()).weight_bytes for rank in range(4)]
    whole = build_model(config, Topology(1, 1, 0, 0, 0, 8, 8), SingleRank()).weight_bytes
    assert len(set(shares)) == 1 and whole / 4 < shares[0] < whole / 2
