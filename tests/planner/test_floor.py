"""The bandwidth floor of decode, against figures worked out by hand from published sizes."""

from __future__ import annotations

import pytest

from remuda.config.engine import ParallelConfig
from remuda.planner.floor import DecodeFloor
from remuda.planner.partition import partition_layers
from tests.planner.models import llama4

GB = 1e9


def floor(tp: int, pp: int) -> DecodeFloor:
    model = llama4()
    parallel = ParallelConfig(
        tensor_parallel_size=tp, pipeline_parallel_size=pp, layer_partition=partition_layers(model, tp, pp)
    )
    return DecodeFloor(model, parallel)


def by_hand(tp: int, rows: float, context: int) -> float:
    """Bytes of Maverick's text model in bfloat16 on one of `tp` ranks; every rank has all routers and norms."""
    hidden, heads, kv_heads, dim = 5120, 40, 8, 128
    attention = hidden * (heads + 2 * kv_heads) * dim + heads * dim * hidden
    expert = 3 * hidden * 8192
    touched = 128 * (1 - (127 / 128) ** rows)
    head = hidden * 202048
    kv = rows * 2 * kv_heads * dim * context
    cut = 48 * (attention + kv) + 24 * 3 * hidden * 16384 + 24 * expert * (1 + touched) + head
    return 2 * (cut / tp + 24 * hidden * 128 + (2 * 48 + 1) * hidden)


@pytest.mark.parametrize("batch", [1, 32, 128])
def test_one_stage_reads_weights_once_and_touched_experts_only(batch: int) -> None:
    ms = floor(4, 1).step_ms(batch, 256, 4 * GB)
    assert ms == pytest.approx(by_hand(4, batch, 256) / (4 * GB) * 1e3)


def test_stages_read_the_weights_once_per_micro_batch_and_one_sequence_passes_them_in_turn() -> None:
    pipelined, single = floor(2, 2), floor(2, 1)
    assert pipelined.step_ms(1, 256, GB) == pytest.approx(single.step_ms(1, 256, GB), rel=1e-6)
    assert pipelined.step_ms(64, 256, GB) == pytest.approx(2 * max(pipelined.stage_bytes(32, 256)) / GB * 1e3)
    assert pipelined.step_ms(64, 256, GB) > 1.15 * floor(4, 1).step_ms(64, 256, GB)


def test_chunked_layers_read_no_more_than_their_chunk() -> None:
    """Maverick: a quarter of the layers see everything, the others at most 8,192 tokens."""
    tokens = {context: sum(floor(1, 1).stage_bytes(1, context)) for context in (1, 8192, 8193, 32768)}
    a_token = 2 * 2 * 8 * 128  # bytes in a layer
    assert tokens[8192] - tokens[1] == 48 * 8191 * a_token
    assert tokens[8193] - tokens[1] == 12 * 8192 * a_token  # the others have begun a chunk
    assert tokens[32768] - tokens[8192] == 12 * (32768 - 8192) * a_token
