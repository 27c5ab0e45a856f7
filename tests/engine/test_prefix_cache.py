"""What counts as the same prefix, and what a hit needs in full and in chunked groups."""

from __future__ import annotations

import random
from collections.abc import Collection

import pytest

from remuda.config.engine import EngineConfig
from remuda.engine.core import EngineCore
from remuda.engine.kv.manager import KVCacheManager
from remuda.engine.kv.prefix import BlockHasher
from remuda.protocol.request import EngineRequest, ImageInput
from tests.engine.fakes import FakeRanks, brute_force, core_over, engine_config, request, run_to_end, tiny_model

PROMPT = [5 + i % 50 for i in range(41)]


def core_of(config: EngineConfig, pages: int = 500) -> EngineCore:
    return core_over(config, FakeRanks(config, pages, immediate=True))


def cached(core: EngineCore, req: EngineRequest) -> int:
    """Run one request; its prompt tokens that came from the cache."""
    outcome = run_to_end(core, [req])[req.request_id]
    assert outcome.first is not None
    assert outcome.token_ids == brute_force(req, core.scheduler.longest_sequence)[0]
    return outcome.first.cached_tokens


def test_a_prompt_seen_before_is_not_computed_again_except_its_last_block() -> None:
    core = core_of(engine_config(block_size=4))
    assert cached(core, request("a", PROMPT)) == 0
    assert cached(core, request("b", PROMPT)) == 40
    assert cached(core, request("c", PROMPT[:40])) == 36  # never the whole prompt: one token has to be computed
    assert cached(core, request("d", [*PROMPT[:20], 1, *PROMPT[21:]])) == 20
    stats = core.stats()
    assert (stats.prefix_queries_tokens, stats.prefix_hits_tokens) == (41 * 3 + 40, 96)


def test_generated_tokens_extend_the_prefix() -> None:
    core = core_of(engine_config(block_size=4))
    first = request("a", PROMPT, max_tokens=20, ignore_eos=True)
    tokens, _ = brute_force(first, 256)
    cached(core, first)
    assert cached(core, request("b", [*PROMPT, *tokens, 9])) == 60  # of 61 known, the last was never computed


def test_a_block_whose_last_token_is_not_computed_is_not_offered() -> None:
    core = core_of(engine_config(block_size=4))
    first = request("a", PROMPT[:7], max_tokens=1)  # the output fills block 1, but its KV is never computed
    tokens, _ = brute_force(first, 256)
    cached(core, first)
    assert cached(core, request("b", [*PROMPT[:7], *tokens, 9])) == 4


def test_cache_salt_separates_tenants() -> None:
    core = core_of(engine_config())
    cached(core, request("a", PROMPT, salt="alice"))
    assert cached(core, request("b", PROMPT, salt="bob")) == 0
    assert cached(core, request("c", PROMPT)) == 0
    assert cached(core, request("d", PROMPT, salt="alice")) == 40


def test_an_image_is_part_of_its_blocks_and_of_what_follows() -> None:
    core = core_of(engine_config(block_size=4))
    cat, dog = (ImageInput(digest, 10, 6, 1, b"") for digest in ("cat", "dog"))
    cached(core, request("a", PROMPT, images=[cat]))
    assert cached(core, request("b", PROMPT, images=[cat])) == 40
    assert cached(core, request("c", PROMPT, images=[dog])) == 8  # the blocks before the image
    assert cached(core, request("d", PROMPT)) == 8


def test_prompt_logprobs_compute_every_position_but_leave_the_cache_warm() -> None:
    core = core_of(engine_config())
    cached(core, request("a", PROMPT))
    assert cached(core, request("b", PROMPT, prompt_logprobs=1)) == 0
    assert cached(core, request("c", PROMPT)) == 40


def computed_and_released(manager: KVCacheManager) -> list[bytes]:
    """Have PROMPT in the cache, and nobody holding it; its digest chain."""
    table = manager.new_table()
    manager.grow(table, len(PROMPT))
    manager.cache_blocks(table, PROMPT, [], "", len(PROMPT))
    manager.release(table)
    return table.chain


def hit(manager: KVCacheManager, prompt: list[int]) -> int:
    """Tokens of `prompt` that the cache holds."""
    table = manager.new_table()
    length = manager.match(table, prompt, [], "")
    manager.check([table])
    manager.release(table)
    return length


def lose_blocks(manager: KVCacheManager, chain: list[bytes], group: int, blocks: Collection[int]) -> None:
    """Have these blocks of `group` evicted, and nothing else."""
    pool, groups = manager.pool, len(manager.new_table().pages)
    found = {(g, block): pool.find(g, digest) for g in range(groups) for block, digest in enumerate(chain[1:])}
    kept = [page for (g, block), page in found.items() if page is not None and (g != group or block not in blocks)]
    for page in kept:
        pool.share(page)
    taken = pool.take(pool.available)
    for page in kept + taken:
        pool.drop(page)


def test_a_chunked_group_needs_only_the_blocks_of_the_current_chunk() -> None:
    manager = KVCacheManager(tiny_model("CCCF", chunk=16).kv_groups, 100, block_size=4)
    chain = computed_and_released(manager)  # 41 tokens: chunks start at 0, 16, 32
    lose_blocks(manager, chain, group=1, blocks=range(8))
    assert hit(manager, PROMPT) == 40  # positions below 32 are past for a token at 40
    assert hit(manager, [*PROMPT[:33], 1]) == 32  # at the border of a chunk no local block is needed
    assert hit(manager, [*PROMPT[:30], 1, 1]) == 16  # 28, 24 and 20 need blocks that are lost
    lose_blocks(manager, chain, group=0, blocks=range(3))
    assert hit(manager, PROMPT) == 0  # the full group needs them all


def test_a_window_needs_only_the_last_blocks() -> None:
    manager = KVCacheManager(tiny_model("WF", window=9).kv_groups, 100, block_size=4)
    chain = computed_and_released(manager)
    lose_blocks(manager, chain, group=1, blocks=range(7))
    assert hit(manager, PROMPT) == 40  # a token at 40 sees 32 ... 40
    assert hit(manager, [*PROMPT[:37], 1]) == 36  # 28 ... 36
    assert hit(manager, [*PROMPT[:33], 1]) == 0  # 24 ... 32, and 24 is lost; so is what shorter prefixes need
    lose_blocks(manager, chain, group=0, blocks=range(3))
    assert hit(manager, PROMPT) == 0


@pytest.mark.parametrize("seed", range(30))
def test_the_longest_prefix_is_found_whatever_is_lost(seed: int) -> None:
    rng = random.Random(seed)
    model = tiny_model("FCW", chunk=rng.randint(1, 20), window=rng.randint(1, 20))
    manager = KVCacheManager(model.kv_groups, 200, block_size=rng.randint(1, 5))
    size = manager.block_size
    chain = computed_and_released(manager)
    for g, share in enumerate((0.05, 0.4, 0.4)):
        lose_blocks(manager, chain, g, [block for block in range(len(chain) - 1) if rng.random() < share])

    def complete(blocks: int) -> bool:
        return all(
            manager.pool.find(g, chain[block + 1]) is not None
            for g, group in enumerate(model.kv_groups)
            for block in range(group.spec.first_visible(blocks * size) // size, blocks)
        )

    longest = max(blocks for blocks in range((len(PROMPT) - 1) // size + 1) if complete(blocks))
    assert hit(manager, PROMPT) == longest * size


def test_resetting_forgets_prefixes_but_not_running_requests() -> None:
    core = core_of(engine_config())
    cached(core, request("a", PROMPT))
    core.reset_prefix_cache()
    assert cached(core, request("b", PROMPT)) == 0
    assert cached(core, request("c", PROMPT)) == 40


def test_turned_off_it_finds_nothing() -> None:
    core = core_of(engine_config(caching=False))
    assert [cached(core, request(name, PROMPT)) for name in "ab"] == [0, 0]


def test_digests_depend_on_a_secret_that_differs_between_engines() -> None:
    chains = []
    for _ in range(2):
        hasher = BlockHasher(4)
        chain = [hasher.root("")]
        hasher.extend(chain, [1, 2, 3, 4], [], 1)
        chains.append(chain)
    assert chains[0][1] != chains[1][1]


def test_a_chain_grown_bit_by_bit_equals_one_made_at_once() -> None:
    hasher = BlockHasher(4, secret=b"s")
    images = [ImageInput("aa", 3, 4, 1, b"")]
    slow, fast = [hasher.root("")], [hasher.root("")]
    for blocks in range(1, 11):
        hasher.extend(slow, PROMPT, images, blocks)
    hasher.extend(fast, PROMPT, images, 10)
    assert slow == fast and len(set(fast)) == 11
