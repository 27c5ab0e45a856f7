"""Page tables of sequences: which page holds which block, per KV group, and what may be given back or shared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from remuda.engine.kv.pool import NULL_PAGE, PagePool
from remuda.engine.kv.prefix import BlockHasher
from remuda.kv.groups import KVGroup, SequencePages
from remuda.kv.specs import NEVER
from remuda.protocol.request import ImageInput


class PageTable:
    """The pages of one sequence. Every group's list covers the same `blocks`; released entries are NULL_PAGE."""

    __slots__ = ("blocks", "border", "chain", "first_live", "hashed", "pages", "work_at")

    def __init__(self, num_groups: int) -> None:
        self.pages: list[list[int]] = [[] for _ in range(num_groups)]
        self.blocks = 0
        self.first_live = [0] * num_groups  # per group: blocks before this one have been released
        self.work_at = 0  # the table needs attention when the next token to compute reaches this position:
        self.border = 0  # either this one, where `trim` has something to give back, or the end of its pages
        self.hashed = 0  # leading blocks offered to the prefix cache
        self.chain: list[bytes] = []  # digests: the root, then one per hashed or matched block


class KVCacheManager:
    """Allocates, releases, shares and caches the pages of all sequences.

    Positions only grow: `grow` covers the next tokens with pages, `trim` gives back what a group will not see again, as
    its spec says. A page given back may serve again in the *next* step plan, so the scheduler trims after it has built
    one.
    """

    def __init__(self, groups: Sequence[KVGroup], num_pages: int, block_size: int, caching: bool = True) -> None:
        self.block_size = block_size
        self.caching = caching
        self.pool = PagePool(num_pages, len(groups))
        self._num_groups = len(groups)
        self.pages_of = SequencePages(groups, block_size).of  # (length): bound for one that grows token by token
        self._keeping = [g for g, group in enumerate(groups) if not group.spec.forgets]
        self._forgetting = [(g, group.spec) for g, group in enumerate(groups) if group.spec.forgets]
        self._borders = tuple(
            {spec for _, spec in self._forgetting}
        )  # groups of one spec have theirs at the same positions
        self._hasher = BlockHasher(block_size)

    # ----------------------------------------------------------------------------------------------- sizes

    def held(self, table: PageTable) -> int:
        """Pages that the table holds now."""
        return sum(table.blocks - first for first in table.first_live)

    def room(self, table: PageTable) -> int:
        """Positions that the table could cover with every page that is free now."""
        return (table.blocks + self.pool.available // self._num_groups) * self.block_size

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
        """Give back the pages that no token from `position` on can see."""
        for g, spec in self._forgetting:
            first = min(spec.first_block(position, self.block_size), table.blocks)
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
            size = self.block_size
            table.border = min((spec.next_border(position, size) for spec in self._borders), default=NEVER)
        table.work_at = min(table.blocks * self.block_size + 1, table.border)

    # ---------------------------------------------------------------------------------------- prefix cache

    def match(self, table: PageTable, token_ids: Sequence[int], images: Sequence[ImageInput], cache_salt: str) -> int:
        """Fill an empty table with the longest cached prefix; returns its length in tokens.

        At least one token is left to compute. A group needs those blocks of the prefix that the next token may see.
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
        """Per group that forgets, the first block that a token at position `length` sees."""
        return {g: spec.first_block(length, self.block_size) for g, spec in self._forgetting}

    def _longest_match(self, chain: list[bytes], blocks: int) -> int:
        find = self.pool.find
        for g in self._keeping:
            for block in range(blocks):
                if find(g, chain[block + 1]) is None:
                    blocks = block
                    break
        while (miss := self._last_miss(chain, blocks)) is not None:
            blocks = miss  # what is needed only grows towards shorter prefixes: those that hold this block fail as well
        return blocks

    def _last_miss(self, chain: list[bytes], blocks: int) -> int | None:
        """The last block that a group which forgets lacks for a prefix of `blocks` blocks."""
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
