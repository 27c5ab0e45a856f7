from __future__ import annotations

from pathlib import Path

import pytest

from remuda.config.engine import ParallelConfig
from remuda.models.registry import build_model, read_model_config
from remuda.parallel.collectives import SingleRank
from remuda.parallel.topology import topology_of
from remuda.planner.memory import check_weights_fit, layouts_that_fit, memory_table, plan_memory
from remuda.protocol.errors import ConfigError
from remuda.tiny import make_tiny
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


@pytest.mark.parametrize("kind", ["maverick-fp8", "scout-fp8"])
@pytest.mark.parametrize(("tp", "ep"), [(1, False), (4, False), (2, True)])
def test_float8_weights_count_as_bytes(tmp_path: Path, kind: str, tp: int, ep: bool) -> None:
    make_tiny(kind, tmp_path / kind, text={"num_hidden_layers": 4})
    model = read_model_config(tmp_path / kind)
    assert any(layer.fp8 for layer in model.layers)
    parallel = ParallelConfig(tp, 2, ep, layer_partition=(3, 1))
    for rank in range(parallel.world_size):
        topology = topology_of(rank, parallel)
        parameters = build_model(model, topology, SingleRank()).parameters()
        declared = sum(p.nbytes for p in parameters if not p.slices[0].source.endswith("_scale"))
        assert plan_memory(model, parallel, 16)[topology.stage].weight_bytes == declared


def test_maverick_needs_about_fifty_gigabytes_a_rank_on_sixteen() -> None:
    stages = plan_memory(llama4(), ParallelConfig(8, 2, layer_partition=(25, 23)), 16)
    assert [round(stage.weight_bytes / 1e9) for stage in stages] == [52, 50]
    table = memory_table(stages)
    assert "routed experts" in table and "stage 1 (layers 25-47)" in table


def test_the_fewest_stages_of_each_tensor_parallel_size() -> None:
    assert layouts_that_fit(llama4(), 80 << 30, max_ranks=16) == [(4, 3), (2, 6), (1, 12), (8, 2)]
    assert layouts_that_fit(llama4(), 80 << 30, max_ranks=12) == [(4, 3), (2, 6), (1, 12)]


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
    small = llama4(num_layers=4, hidden_size=64, vocab_size=512, vision=None, moe=None, moe_step=99)
    assert layouts_that_fit(small, 1 << 30, max_ranks=1) == [(1, 1)]
