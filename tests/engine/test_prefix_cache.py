"""What counts as the same prefix, and what a hit needs in full and in chunked groups."""

from __future__ import annotations

from remuda.config.engine import EngineConfig
from remuda.config.kv_groups import kv_groups
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


def lose_blocks(manager: KVCacheManager, chain: list[bytes], group: int, blocks: int) -> None:
    """Have the first `blocks` blocks of `group` evicted, and nothing else."""
    pool = manager.pool
    found = {(g, block): pool.find(g, digest) for g in range(4) for block, digest in enumerate(chain[1:])}
    kept = [page for (g, block), page in found.items() if page is not None and (g != group or block >= blocks)]
    for page in kept:
        pool.share(page)
    taken = pool.take(pool.available)
    for page in kept + taken:
        pool.drop(page)


def test_a_chunked_group_needs_only_the_blocks_of_the_current_chunk() -> None:
    manager = KVCacheManager(kv_groups(tiny_model("CCCF", chunk=16)), 100, block_size=4)
    table = manager.new_table()
    manager.grow(table, len(PROMPT))  # 41 tokens: chunks start at 0, 16, 32
    manager.cache_blocks(table, PROMPT, [], "", len(PROMPT))
    manager.release(table)
    lose_blocks(manager, table.chain, group=1, blocks=8)

    def hit(prompt: list[int]) -> int:
        other = manager.new_table()
        length = manager.match(other, prompt, [], "")
        manager.check([other])
        manager.release(other)
        return length

    assert hit(PROMPT) == 40  # positions below 32 are past for a token at 40
    assert hit([*PROMPT[:33], 1]) == 32  # at the border of a chunk no local block is needed
    assert hit([*PROMPT[:30], 1, 1]) == 16  # 28, 24 and 20 need blocks that are lost
    lose_blocks(manager, table.chain, group=0, blocks=3)
    assert hit(PROMPT) == 0  # the full group needs them all


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
