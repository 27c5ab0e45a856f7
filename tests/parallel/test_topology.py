from __future__ import annotations

import pytest

from remuda.parallel.topology import expert_range


@pytest.mark.parametrize(("experts", "ranks"), [(128, 8), (6, 4), (7, 7), (5, 1)])
def test_every_expert_is_dealt_to_one_rank(experts: int, ranks: int) -> None:
    dealt = [expert_range(experts, ranks, rank) for rank in range(ranks)]
    assert [expert for owned in dealt for expert in owned] == list(range(experts))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
