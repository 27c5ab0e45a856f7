"""Layers that forget give their pages back: what a long sequence holds, and how much wider a batch gets by it."""

from __future__ import annotations

import pytest

from remuda.engine.core import EngineCore
from remuda.engine.kv.manager import KVCacheManager
from remuda.kv.groups import KVGroup
from remuda.kv.specs import ChunkedLocal, FullAttention, SlidingWindow
from tests.engine.fakes import CountingRanks, FakeRanks, core_over, engine_config, request, run_step, tiny_model

BLOCK, CHUNK = 4, 16
LENGTH = 64 * CHUNK


def core_of(layers: str, pages: int, seqs: int = 1, chunk: int = CHUNK) -> EngineCore:
    config = engine_config(
        tiny_model(layers, chunk), block_size=BLOCK, caching=False, max_model_len=4 * LENGTH,
        max_num_seqs=seqs, max_num_batched_tokens=CHUNK, max_waiting=1000,
    )  # fmt: skip
    return core_over(config, FakeRanks(config, pages, immediate=True))


def held_when_64_chunks_are_computed(layers: str) -> int:
    core = core_of(layers, 10_000)
    core.add(request("long", [7] * LENGTH, max_tokens=100, ignore_eos=True))
    for _ in range(LENGTH // CHUNK):
        run_step(core, {})
    return core.stats().kv_pages_used


def test_at_64_chunks_a_sequence_holds_a_quarter_and_a_chunk() -> None:
    uniform = held_when_64_chunks_are_computed("FFFFFFFF")  # one group of 8 layers, a page 4 times as big
    hybrid = held_when_64_chunks_are_computed("CCCFCCCF")  # four groups of 2 layers
    uniform_in_small_pages = 4 * uniform
    assert uniform_in_small_pages == 4 * LENGTH // BLOCK
    one_chunk = 3 * CHUNK // BLOCK
    assert hybrid <= uniform_in_small_pages / 4 + one_chunk
    assert hybrid / uniform_in_small_pages < 0.27


def test_the_same_memory_carries_a_wider_batch() -> None:
    small_pages = 4 * LENGTH // BLOCK * 4  # four sequences of 64 chunks in a uniform cache
    widths, steps = {}, {}
    for layers, pages in (("FFFFFFFF", small_pages // 4), ("CCCFCCCF", small_pages)):
        config = engine_config(
            tiny_model(layers, CHUNK), block_size=BLOCK, caching=False, max_model_len=LENGTH + 1, max_num_seqs=64,
            max_num_batched_tokens=512, max_waiting=64,
        )  # fmt: skip
        core = core_over(config, CountingRanks(pages + 1))
        for i in range(64):
            core.add(request(f"r{i}", [7] * (LENGTH - 100), max_tokens=100))
        widest = 0
        while core.has_work:
            core.step(block=False)
            widest = max(widest, core.stats().running)
        widths[layers], steps[layers] = widest, core.stats().steps
    assert widths["FFFFFFFF"] == 4
    assert widths["CCCFCCCF"] >= 14
    assert steps["CCCFCCCF"] < steps["FFFFFFFF"] / 3


@pytest.mark.parametrize("size", [1, 3, 4, 7, 8, 16, 30])
@pytest.mark.parametrize("kind", [ChunkedLocal, SlidingWindow])
@pytest.mark.parametrize("block_size", [1, 4, 5, 16])
def test_a_page_goes_back_exactly_when_its_last_position_is_past(
    kind: type[ChunkedLocal] | type[SlidingWindow], size: int, block_size: int
) -> None:
    groups = (KVGroup(FullAttention(), (0,)), KVGroup(kind(size), (1,)))
    manager = KVCacheManager(groups, 1000, block_size)
    table = manager.new_table()
    widest = 0
    for position in range(100):
        if position + 1 >= table.work_at:
            manager.grow(table, position + 1)
            manager.trim(table, position + 1)
        is_chunk = kind is ChunkedLocal
        first_seen = (position + 1) // size * size if is_chunk else max(0, position + 2 - size)
        for block, page in enumerate(table.pages[1]):
            assert (page != 0) == ((block + 1) * block_size > first_seen)
        assert manager.held(table) == sum(page != 0 for pages in table.pages for page in pages)
        widest = max(widest, manager.held(table) - table.blocks)
        assert manager.held(table) <= manager.pages_of(position + 1)
    assert widest <= -(-size // block_size) + 1
    manager.release(table)
    manager.check([table])
    assert manager.pool.used == 0


def test_the_longest_sequence_that_the_cache_holds_is_found_and_reached() -> None:
    core = core_of("CCCF", 100)
    longest = core.scheduler.longest_sequence
    assert core.scheduler.kv.pages_of(longest) <= 99 < core.scheduler.kv.pages_of(longest + BLOCK)
    core.add(request("long", [7] * 10, max_tokens=None, ignore_eos=True))
    while core.has_work:
        run_step(core, {})
    assert core.stats().generated_tokens == longest - 10
