"""Page tables of sequences: which page holds which block, per KV group, and what may be given back or shared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from remuda.config.kv_groups import KVGroup
from remuda.engine.kv.pool import NULL_PAGE, PagePool
from remuda.engine.kv.prefix import BlockHasher
from remuda.protocol.request import ImageInput

NEVER = 1 << 62


class PageTable:
    """The pages of one sequence. Every group's list covers the same `blocks`; released entries are NULL_PAGE."""

    __slots__ = ("blocks", "border", "chain", "first_live", "hashed", "pages", "work_at")

    def __init__(self, num_groups: int) -> None:
        self.pages: list[list[int]] = [[] for _ in range(num_groups)]
        self.blocks = 0
        self.first_live = [0] * num_groups  # per group: blocks before this one have been released
        self.work_at = 0  # the table needs attention when the next token to compute reaches this position:
        self.border = 0  # either this one, where a chunk ends and `trim` has something to do, or the end of its pages
        self.hashed = 0  # leading blocks offered to the prefix cache
        self.chain: list[bytes] = []  # digests: the root, then one per hashed or matched block


class KVCacheManager:
    """Allocates, releases, shares and caches the pages of all sequences.

    Positions only grow: `grow` covers the next tokens with pages, `trim` gives back what a chunked group can no longer
    see. A page given back may serve again in the *next* step plan, so the scheduler trims after it has built one.
    """

    def __init__(self, groups: Sequence[KVGroup], num_pages: int, block_size: int, caching: bool = True) -> None:
        self.block_size = block_size
        self.caching = caching
        self.pool = PagePool(num_pages, len(groups))
        self._num_groups = len(groups)
        self._full = [g for g, group in enumerate(groups) if group.chunk is None]
        self._chunked = [(g, group.chunk) for g, group in enumerate(groups) if group.chunk is not None]
        self._chunks = sorted({chunk for _, chunk in self._chunked})
        self._hasher = BlockHasher(block_size)

    # ----------------------------------------------------------------------------------------------- sizes

    def blocks_of(self, length: int) -> int:
        return -(-length // self.block_size)

    def pages_of(self, length: int) -> int:
        """Upper bound of the pages that a sequence of `length` tokens holds while it grows token by token."""
        blocks = self.blocks_of(length)
        pages = len(self._full) * blocks
        for _, chunk in self._chunked:
            pages += min(blocks, self._blocks_touched(chunk))
        return pages

    def longest_sequence(self, limit: int) -> int:
        """Tokens, at most `limit`, of the longest sequence that the whole cache can hold."""
        if self.pages_of(limit) <= self.pool.num_pages - 1:
            return limit
        low, high = 0, self.blocks_of(limit)
        while high - low > 1:
            middle = (low + high) // 2
            fits = self.pages_of(middle * self.block_size) <= self.pool.num_pages - 1
            low, high = (middle, high) if fits else (low, middle)
        return low * self.block_size

    def held(self, table: PageTable) -> int:
        """Pages that the table holds now."""
        return sum(table.blocks - first for first in table.first_live)

    def room(self, table: PageTable) -> int:
        """Positions that the table could cover with every page that is free now."""
        return (table.blocks + self.pool.available // self._num_groups) * self.block_size

    def _blocks_touched(self, chunk: int) -> int:
        """Most blocks that one attention chunk overlaps, wherever it starts."""
        size = self.block_size
        return chunk // size if chunk % size == 0 else (chunk + size - 2) // size + 1

    # ---------------------------------------------------------------------------------- growth and release

    def new_table(self) -> PageTable:
        table = PageTable(self._num_groups)
        self._place(table, 0)
        return table

    def grow(self, table: PageTable, end: int) -> list[list[int]] | None:
        """Cover positions below `end`; the caller has checked `room`. Returns new pages per group, if any."""
        count = -(-end // self.block_size) - table.blocks
        if count <= 0:
            self._place(table, end)
            return None
        taken = self.pool.take(count * self._num_groups)
        granted = [taken[at : at + count] for at in range(0, len(taken), count)]
        for pages, new in zip(table.pages, granted, strict=True):
            pages += new
        table.blocks += count
        self._place(table, end)
        return granted

    def trim(self, table: PageTable, position: int) -> None:
        """Give back the pages of chunked groups that no token from `position` on can see."""
        for g, chunk in self._chunked:
            first = min(position // chunk * chunk // self.block_size, table.blocks)
            pages = table.pages[g]
            for block in range(table.first_live[g], first):
                if pages[block] != NULL_PAGE:
                    self.pool.drop(pages[block])
                    pages[block] = NULL_PAGE
            table.first_live[g] = max(first, table.first_live[g])

    def release(self, table: PageTable) -> None:
        """Give back everything; the digest chain stays for the next admission. Later blocks are evicted first."""
        drop = self.pool.drop
        for pages in table.pages:
            for page in reversed(pages):
                if page != NULL_PAGE:
                    drop(page)
            pages.clear()
        table.blocks = table.hashed = 0
        table.first_live = [0] * self._num_groups
        table.border = 0
        self._place(table, 0)

    def _place(self, table: PageTable, position: int) -> None:
        """The next token to compute is at `position`: note where the table needs attention again."""
        if position >= table.border:
            table.border = min(((position // chunk + 1) * chunk for chunk in self._chunks), default=NEVER)
        table.work_at = min(table.blocks * self.block_size + 1, table.border)

    # ---------------------------------------------------------------------------------------- prefix cache

    def match(self, table: PageTable, token_ids: Sequence[int], images: Sequence[ImageInput], cache_salt: str) -> int:
        """Fill an empty table with the longest cached prefix; returns its length in tokens.

        At least one token is left to compute. Full groups need every block of the prefix, chunked ones only those of
        the chunk that the next token lives in.
        """
        if not self.caching:
            return 0
        if not table.chain:
            table.chain = [self._hasher.root(cache_salt)]
        blocks = (len(token_ids) - 1) // self.block_size
        self._hasher.extend(table.chain, token_ids, images, blocks)
        blocks = self._longest_match(table.chain, blocks)
        length = blocks * self.block_size
        find, share = self.pool.find, self.pool.share
        first_needed = dict.fromkeys(range(self._num_groups), 0) | self._first_needed(length)
        for g, first in first_needed.items():
            pages = [find(g, digest) or NULL_PAGE for digest in table.chain[first + 1 : blocks + 1]]
            for page in pages:
                share(page)
            table.pages[g] = [NULL_PAGE] * first + pages
            table.first_live[g] = first
        table.blocks = table.hashed = blocks
        self._place(table, length)
        return length

    def _first_needed(self, length: int) -> dict[int, int]:
        """Per chunked group, the first block that a token at position `length` sees."""
        return {g: length // chunk * chunk // self.block_size for g, chunk in self._chunked}

    def _longest_match(self, chain: list[bytes], blocks: int) -> int:
        find = self.pool.find
        for g in self._full:
            for block in range(blocks):
                if find(g, chain[block + 1]) is None:
                    blocks = block
                    break
        while (miss := self._last_miss(chain, blocks)) is not None:
            blocks = miss  # every longer prefix whose current chunk includes the missing block fails as well
        return blocks

    def _last_miss(self, chain: list[bytes], blocks: int) -> int | None:
        """The last block that a chunked group lacks for a prefix of `blocks` blocks."""
        find = self.pool.find
        for g, first in self._first_needed(blocks * self.block_size).items():
            for block in range(blocks - 1, first - 1, -1):
                if find(g, chain[block + 1]) is None:
                    return block
        return None

    def cache_blocks(
        self, table: PageTable, token_ids: Sequence[int], images: Sequence[ImageInput], cache_salt: str, length: int
    ) -> None:
        """Offer the full blocks within the first `length` tokens, all confirmed and computed, to the prefix cache."""
        blocks = min(length // self.block_size, table.blocks)
        if not self.caching or blocks <= table.hashed:
            return
        if not table.chain:
            table.chain = [self._hasher.root(cache_salt)]
        self._hasher.extend(table.chain, token_ids, images, blocks)
        for g, pages in enumerate(table.pages):
            for block in range(table.hashed, blocks):
                if pages[block] != NULL_PAGE:
                    self.pool.cache(pages[block], g, table.chain[block + 1])
        table.hashed = blocks

    def reset_prefix_cache(self) -> None:
        self.pool.forget_all()

    def check(self, tables: Iterable[PageTable]) -> None:
        """Assert that the pool and the tables of all sequences alive agree."""
        alive = list(tables)
        for table in alive:
            assert all(len(pages) == table.blocks for pages in table.pages)
        self.pool.check(pages for table in alive for pages in table.pages)
