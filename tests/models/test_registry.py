from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from remuda.models import registry
from remuda.models.architecture import Architecture
from remuda.models.interfaces import Model, SupportsImages, SupportsPP
from remuda.models.registry import ARCHITECTURES, TINY_KINDS, build_model, check_architecture, read_model_config
from remuda.parallel.collectives import SingleRank
from remuda.parallel.topology import Topology
from remuda.protocol.errors import ConfigError


def test_an_unregistered_architecture_is_refused_with_the_list() -> None:
    with pytest.raises(ConfigError, match="'GPT2LMHeadModel' is not supported; supported: Llama4ForConditional"):
        check_architecture("GPT2LMHeadModel", pp_size=1)


class OneStage(Model):
    pass


def test_a_model_without_pipeline_support_runs_on_one_stage_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class WithoutStages(Architecture):
        def model_class(self) -> type[Model]:
            return OneStage

    entry = WithoutStages("OneStage", "", ARCHITECTURES["LlamaForCausalLM"].read_config)
    monkeypatch.setitem(registry.ARCHITECTURES, "OneStage", entry)
    check_architecture("OneStage", pp_size=1)
    with pytest.raises(ConfigError, match="does not support --pipeline-parallel-size 2; those that do: Llama4"):
        check_architecture("OneStage", pp_size=2)


def test_what_the_models_support() -> None:
    assert all(architecture.supports(SupportsPP) for architecture in ARCHITECTURES.values())
    assert ARCHITECTURES["Llama4ForConditionalGeneration"].supports(SupportsImages)
    assert not ARCHITECTURES["LlamaForCausalLM"].supports(SupportsImages)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_has_a_tiny_checkpoint_of_its_own(name: str) -> None:
    kinds = ARCHITECTURES[name].tiny
    assert kinds and all(kind.config({}, {})["architectures"] == [name] for kind in kinds.values())


def test_every_kind_says_what_it_imitates() -> None:
    assert len(TINY_KINDS) == sum(len(a.tiny) for a in ARCHITECTURES.values())  # no name twice
    assert all(len(kind.about) > 10 for kind in TINY_KINDS.values())


def test_a_layout_that_does_not_cut_the_heads_is_refused(tiny: Callable[[str], Path]) -> None:
    config = read_model_config(tiny("maverick"))
    with pytest.raises(ConfigError, match="--tensor-parallel-size 3 does not work: it does not divide the 8 attention"):
        build_model(config, Topology(3, 1, 0, 0, 0, 8, 8), SingleRank())


def test_building_allocates_nothing_and_sizes_any_rank(tiny: Callable[[str], Path]) -> None:
    config = read_model_config(tiny("maverick"))
    shares = [build_model(config, Topology(4, 1, rank, 0, 0, 8, 8), SingleRank()).weight_bytes for rank in range(4)]
    whole = build_model(config, Topology(1, 1, 0, 0, 0, 8, 8), SingleRank()).weight_bytes
    assert len(set(shares)) == 1 and whole / 4 < shares[0] < whole / 2
