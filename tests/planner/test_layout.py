from __future__ import annotations

import pytest

from remuda.config.model import ModelConfig, MoEConfig
from remuda.planner.layout import check_tensor_parallel, working_shares
from remuda.protocol.errors import ConfigError
from tests.planner.models import llama4


def working_sizes(model: ModelConfig, expert_parallel: bool = False) -> list[int]:
    return list(working_shares(model, expert_parallel))


def test_sizes_that_cut_maverick() -> None:
    assert working_sizes(llama4()) == [1, 2, 4, 8]


def test_kv_heads_may_be_replicated() -> None:
    assert working_sizes(llama4(num_heads=32, num_kv_heads=2)) == [1, 2, 4, 8, 16, 32]


def test_a_refusal_names_the_reason_and_the_sizes_that_work() -> None:
    with pytest.raises(ConfigError, match=r"40 attention heads; sizes that work: 1, 2, 4, 8$"):
        check_tensor_parallel(llama4(), 3)
    with pytest.raises(ConfigError, match="8 key/value heads"):
        check_tensor_parallel(llama4(), 5)


def test_whole_experts_need_no_even_intermediate_size() -> None:
    odd = llama4(moe=MoEConfig(6, 1, 8191, 8192))
    assert working_sizes(odd) == [1]
    assert working_sizes(odd, expert_parallel=True) == [1, 2, 4]
    with pytest.raises(ConfigError, match="only 6 experts"):
        check_tensor_parallel(odd, 8, expert_parallel=True)


def test_expert_parallel_without_experts_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no experts"):
        check_tensor_parallel(llama4(moe=None, moe_step=99), 2, expert_parallel=True)
