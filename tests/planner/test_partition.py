from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remuda.planner.partition import Cost, balance, partition_layers
from remuda.protocol.errors import ConfigError
from tests.planner.models import llama4


def test_maverick_on_two_stages_weighs_head_and_tower() -> None:
    assert partition_layers(llama4(), tp_size=8, pp_size=2) == (25, 23)


@pytest.mark.parametrize("stages", [1, 2, 3, 5, 8, 47, 48])
def test_every_stage_has_layers_and_none_is_lost(stages: int) -> None:
    partition = partition_layers(llama4(), 8, stages)
    assert len(partition) == stages and sum(partition) == 48 and min(partition) >= 1


@pytest.mark.parametrize("stages", [0, 49])
def test_more_stages_than_layers_are_refused(stages: int) -> None:
    with pytest.raises(ConfigError, match="1 to 48"):
        partition_layers(llama4(), 8, stages)


def test_a_heavy_head_takes_layers_off_the_last_stage() -> None:
    layers = [Cost(1.0, 1.0)] * 8
    assert balance(layers, Cost(0, 0), Cost(4, 4), 2) == (6, 2)
    assert balance(layers, Cost(0, 4), Cost(0, 0), 2) == (3, 5)  # (2, 6) would even out bytes, at the price of time


costs = st.builds(Cost, time=st.integers(1, 9).map(float), bytes=st.integers(1, 9).map(float))


@given(st.lists(costs, min_size=1, max_size=8), costs, costs, st.data())
def test_no_other_cut_has_a_better_worst_stage(
    layers: list[Cost], first: Cost, last: Cost, data: st.DataObject
) -> None:
    stages = data.draw(st.integers(1, len(layers)))
    total = sum(layers, first + last)

    def worst(partition: tuple[int, ...]) -> float:
        begin, loads = 0, []
        for stage, count in enumerate(partition):
            cost = sum(layers[begin : begin + count], Cost(0, 0))
            cost = cost + first if stage == 0 else cost
            cost = cost + last if stage == stages - 1 else cost
            loads.append(max(cost.time / total.time, cost.bytes / total.bytes))
            begin += count
        return max(loads)

    cuts = ((0, *inner, len(layers)) for inner in combinations(range(1, len(layers)), stages - 1))
    best = min(worst(tuple(b - a for a, b in pairwise(cut))) for cut in cuts)
    assert worst(balance(layers, first, last, stages)) == pytest.approx(best)
