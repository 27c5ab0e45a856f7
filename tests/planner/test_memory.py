from __future__ import annotations

import time
from pathlib import Path

import pytest

from remuda.config.engine import ParallelConfig
from remuda.config.model import ModelConfig
from remuda.models.registry import TINY_KINDS, build_model, read_model_config
from remuda.parallel.collectives import SingleRank
from remuda.parallel.topology import Topology, topology_of
from remuda.planner.memory import check_weights_fit, layouts_that_fit, memory_table, plan_memory
from remuda.protocol.errors import ConfigError
from remuda.tiny import make_tiny
from remuda.weights.loader import load_parameters
from tests.planner.models import llama4

LAYOUTS = [(1, (48,), False), (8, (25, 23), False), (8, (10, 20, 18), True), (4, (48,), True), (2, (1, 46, 1), False)]


@pytest.mark.parametrize(("tp", "partition", "ep"), LAYOUTS)
def test_the_plan_equals_what_the_models_declare(tp: int, partition: tuple[int, ...], ep: bool) -> None:
    model = llama4()
    parallel = ParallelConfig(tp, len(partition), ep, layer_partition=partition)
    for rank in range(parallel.world_size):
        topology = topology_of(rank, parallel)
        declared = build_model(model, topology, SingleRank()).weight_bytes
        assert plan_memory(model, parallel, 16)[topology.stage].weight_bytes == declared


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of every kind, with five experts where there are any: ranks differ when these are dealt out whole."""
    root = tmp_path_factory.mktemp("planned")
    for kind in TINY_KINDS:
        make_tiny(kind, root / kind, text={"num_hidden_layers": 4, "num_local_experts": 5, "num_experts": 5})
    return {kind: root / kind for kind in TINY_KINDS}


def loaded_bytes(model: ModelConfig, topology: Topology) -> int:
    """Of the tensors that a rank really makes."""
    parameters = build_model(model, topology, SingleRank()).parameters()
    load_parameters(parameters, model.path, "cpu")
    return sum(parameter.take().nbytes for parameter in parameters)


@pytest.mark.parametrize(("tp", "partition", "ep"), [(1, (4,), False), (4, (3, 1), False), (2, (1, 2, 1), True)])
@pytest.mark.parametrize("kind", TINY_KINDS)
def test_the_plan_equals_what_ranks_load(
    checkpoints: dict[str, Path], kind: str, tp: int, partition: tuple[int, ...], ep: bool
) -> None:
    model = read_model_config(checkpoints[kind])
    ep = ep and model.moe is not None
    parallel = ParallelConfig(tp, len(partition), ep, layer_partition=partition)
    loaded: dict[int, list[int]] = {}
    for rank in range(parallel.world_size):
        topology = topology_of(rank, parallel)
        loaded.setdefault(topology.stage, []).append(loaded_bytes(model, topology))
    planned = {stage.stage: stage.weight_bytes for stage in plan_memory(model, parallel, 16)}
    assert planned == {stage: max(ranks) for stage, ranks in loaded.items()}
    assert ep or all(len(set(ranks)) == 1 for ranks in loaded.values())


def test_maverick_needs_about_fifty_gigabytes_a_rank_on_sixteen() -> None:
    stages = plan_memory(llama4(), ParallelConfig(8, 2, layer_partition=(25, 23)), 16)
    assert [round(stage.weight_bytes / 1e9) for stage in stages] == [52, 50]
    table = memory_table(stages)
    assert "routed experts" in table and "stage 1 (layers 25-47)" in table


def test_the_fewest_stages_of_each_tensor_parallel_size() -> None:
    assert layouts_that_fit(llama4(), 80 << 30, max_ranks=16) == [(4, 3), (2, 6), (1, 12), (8, 2)]
    assert layouts_that_fit(llama4(), 80 << 30, max_ranks=12) == [(4, 3), (2, 6), (1, 12)]
    with_cache = layouts_that_fit(llama4(), 80 << 30, max_ranks=16, pages=200_000)  # 150 GiB on one rank
    assert with_cache == [(8, 2), (4, 4), (2, 8)]


def test_weights_that_do_not_fit_are_refused_with_the_table_and_a_way_out() -> None:
    parallel = ParallelConfig(8, 1, layer_partition=(48,))
    check_weights_fit(llama4(), parallel, 100 << 30)
    with pytest.raises(ConfigError) as caught:
        check_weights_fit(llama4(), parallel, 80 << 30)
    message = caught.value.message
    assert "need 94.949 GiB" in message and "routed experts" in message
    assert "that would fit ranks of this memory: 4 x 3, 2 x 6, 1 x 12, 8 x 2" in message
    with pytest.raises(ConfigError, match="none on up to 128 ranks"):
        check_weights_fit(llama4(), parallel, 1 << 20)


def test_one_layer_models_fit_one_rank() -> None:
    sizes = {"hidden_size": 64, "vocab_size": 512, "vision": None, "moe": None}
    small = llama4(num_layers=4, moe_step=99, architecture="Llama4ForCausalLM", **sizes)
    assert layouts_that_fit(small, 1 << 30, max_ranks=1) == [(1, 1)]


def test_planning_a_large_model_is_cheap() -> None:
    start = time.process_time()
    layouts_that_fit(llama4(), 80 << 30, max_ranks=128)
    plan_memory(llama4(), ParallelConfig(8, 2, layer_partition=(25, 23)), 16)
    assert time.process_time() - start < 1.0
