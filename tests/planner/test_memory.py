from __future__ import annotations

import pytest

from remuda.config.engine import ParallelConfig
from remuda.models.registry import build_model
from remuda.parallel.collectives import SingleRank
from remuda.parallel.topology import topology_of
from remuda.planner.memory import layouts_that_fit, memory_table, plan_memory
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


def test_maverick_needs_about_fifty_gigabytes_a_rank_on_sixteen() -> None:
    stages = plan_memory(llama4(), ParallelConfig(8, 2, layer_partition=(25, 23)), 16)
    assert [round(stage.weight_bytes / 1e9) for stage in stages] == [52, 50]
    table = memory_table(stages)
    assert "routed experts" in table and "stage 1 (layers 25-47)" in table


def test_layouts_that_fit_are_found_smallest_first() -> None:
    model = llama4()
    fitting = list(layouts_that_fit(model, 80 << 30, max_ranks=16))
    assert (8, 2) in fitting and (8, 1) not in fitting
    ranks = [tp * pp for tp, pp in fitting]
    assert ranks == sorted(ranks) and ranks[-1] <= 16


def test_one_layer_models_fit_one_rank() -> None:
    small = llama4(num_layers=4, hidden_size=64, vocab_size=512, vision=None, moe=None, moe_step=99)
    assert next(layouts_that_fit(small, 1 << 30, max_ranks=8)) == (1, 1)
