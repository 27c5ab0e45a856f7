"""The page pool against a model that is too simple to be wrong."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remuda.engine.kv.pool import PagePool


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), num_pages=st.integers(2, 12))
def test_random_operations_keep_every_invariant(seed: int, num_pages: int) -> None:
    rng = random.Random(seed)
    pool = PagePool(num_pages, num_groups=2)
    held: list[int] = []  # with multiplicity
    content: dict[int, tuple[int, bytes]] = {}
    for _ in range(200):
        group, digest = rng.randrange(2), bytes([rng.randrange(6)])
        match rng.choice(
            ["take", "drop", "cache", "share", "reset"] if rng.random() < 0.02 else ["take", "drop", "cache", "share"]
        ):
            case "take" if pool.available:
                pages = pool.take(rng.randint(1, pool.available))
                assert not set(pages) & {0, *held} and len(set(pages)) == len(pages)
                for page in pages:
                    content.pop(page, None)
                held += pages
            case "drop" if held:
                pool.drop(held.pop(rng.randrange(len(held))))
            case "cache" if held:
                page = rng.choice(held)
                taken = (group, digest) in content.values() or page in content
                pool.cache(page, group, digest)
                if not taken:
                    content[page] = (group, digest)
            case "share":
                found = pool.find(group, digest)
                assert found == next((p for p, block in content.items() if block == (group, digest)), None)
                if found is not None:
                    pool.share(found)
                    held.append(found)
            case "reset":
                pool.forget_all()
                content.clear()
        pool.check([held])
        assert pool.used == len(set(held)) and pool.available == num_pages - 1 - pool.used


def test_the_page_freed_longest_ago_is_evicted_first() -> None:
    pool = PagePool(4, 1)
    pages = pool.take(3)
    for name, page in zip(b"abc", pages, strict=True):
        pool.cache(page, 0, bytes([name]))
    for page in (pages[1], pages[0], pages[2]):
        pool.drop(page)
    pool.share(pages[1])  # used again: now the youngest
    pool.drop(pages[1])
    assert pool.take(3) == [pages[0], pages[2], pages[1]]
    assert pool.find(0, b"a") is None


def test_empty_pages_go_before_cached_ones() -> None:
    pool = PagePool(3, 1)
    kept, plain = pool.take(2)
    pool.cache(kept, 0, b"k")
    pool.drop(kept)
    pool.drop(plain)
    assert pool.take(1) == [plain] and pool.find(0, b"k") == kept


def test_giving_back_twice_is_a_bug_that_shows() -> None:
    pool = PagePool(3, 1)
    [page] = pool.take(1)
    pool.drop(page)
    with pytest.raises(AssertionError, match="twice"):
        pool.drop(page)
