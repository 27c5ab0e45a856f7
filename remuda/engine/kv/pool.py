"""The pool of KV pages: who holds which page, and which free page still has a cached block. Every operation is O(1)."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable

NULL_PAGE = 0


class PagePool:
    """Pages 1 .. num_pages-1 (page 0 is the null page, never handed out).

    A page is in exactly one of three states: held (references > 0), free and empty, or free and cached. A cached page
    keeps the block that was computed into it until its room is needed; the page freed longest ago goes first.
    A held page may be cached too: then other sequences can share it.
    """

    def __init__(self, num_pages: int, num_groups: int) -> None:
        self.num_pages = num_pages
        self._references = [0] * num_pages
        self._empty = list(range(num_pages - 1, NULL_PAGE, -1))  # taken from the end: low pages first
        self._evictable: OrderedDict[int, None] = OrderedDict()  # free and cached, oldest first
        self._page_of: list[dict[bytes, int]] = [{} for _ in range(num_groups)]  # per KV group: block digest -> page
        self._block_of: list[tuple[int, bytes] | None] = [None] * num_pages  # page -> (group, digest)

    @property
    def available(self) -> int:
        """Pages that `take` can hand out now."""
        return len(self._empty) + len(self._evictable)

    @property
    def used(self) -> int:
        """Pages held by sequences."""
        return self.num_pages - 1 - self.available

    def take(self, count: int) -> list[int]:
        """Hand out free pages with one reference each. The caller has checked `available`."""
        empty, references = self._empty, self._references
        kept = max(0, len(empty) - count)
        pages = empty[kept:]
        del empty[kept:]
        while len(pages) < count:
            page, _ = self._evictable.popitem(last=False)
            self._forget(page)
            pages.append(page)
        for page in pages:
            references[page] = 1
        return pages

    def share(self, page: int) -> None:
        """Add a reference to a cached page, held or free."""
        if self._references[page] == 0:
            del self._evictable[page]
        self._references[page] += 1

    def drop(self, page: int) -> None:
        """Give one reference back."""
        left = self._references[page] = self._references[page] - 1
        if left:
            assert left > 0, f"page {page} was given back twice"
        elif self._block_of[page] is None:
            self._empty.append(page)
        else:
            self._evictable[page] = None

    def held(self, page: int) -> bool:
        return self._references[page] > 0

    def find(self, group: int, digest: bytes) -> int | None:
        """The page of `group` that has the block, if any."""
        return self._page_of[group].get(digest)

    def cache(self, page: int, group: int, digest: bytes) -> None:
        """Remember what a held page contains. The first page with a block stays the one that is found."""
        pages = self._page_of[group]
        if digest not in pages and self._block_of[page] is None:
            pages[digest] = page
            self._block_of[page] = (group, digest)

    def forget_all(self) -> None:
        """Empty the prefix cache; held pages stay held."""
        for pages in self._page_of:
            pages.clear()
        self._block_of = [None] * self.num_pages
        self._empty.extend(self._evictable)
        self._evictable.clear()

    def _forget(self, page: int) -> None:
        block = self._block_of[page]
        assert block is not None
        group, digest = block
        del self._page_of[group][digest]
        self._block_of[page] = None

    def check(self, tables: Iterable[Iterable[int]]) -> None:
        """Assert every invariant; `tables` are the page lists of all sequences alive (null pages are skipped)."""
        holders = Counter(page for table in tables for page in table if page != NULL_PAGE)
        assert len(set(self._empty)) == len(self._empty), "a page is twice in the free list"
        for page in range(NULL_PAGE + 1, self.num_pages):
            assert self._references[page] == holders[page], f"page {page}: references differ from its holders"
        free = set(self._empty) | set(self._evictable)
        assert not free & set(holders), "a free page is held"
        assert len(free) == len(self._empty) + len(self._evictable), "a page is empty and cached at once"
        assert len(free) + len(holders) == self.num_pages - 1, "a page is lost"
        assert all(self._block_of[page] is None for page in self._empty)
        assert all(self._block_of[page] is not None for page in self._evictable)
        cached = {page: (g, digest) for g, pages in enumerate(self._page_of) for digest, page in pages.items()}
        assert cached == {page: block for page, block in enumerate(self._block_of) if block is not None}
