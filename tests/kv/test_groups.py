"""How layers are dealt to groups, what a page of a stage holds, and how long a sequence fits into how many pages."""

from __future__ import annotations

import random

import pytest

from remuda.kv.groups import SequencePages, group_layers, kv_places, stage_page
from remuda.kv.specs import AnyAttention, AttentionSpec, ChunkedLocal, FullAttention, KVShape, PageTensor, SlidingWindow
from remuda.protocol.errors import ConfigError

KINDS: dict[str, AnyAttention] = {"F": FullAttention(), "C": ChunkedLocal(13), "W": SlidingWindow(10)}
SHAPE = KVShape(heads=2, head_dim=8, dtype="float32")


class Latent(AttentionSpec, frozen=True):
    """One narrow vector per token for all heads, as MLA keeps it."""

    def tensors(self, shape: KVShape, block_size: int) -> tuple[PageTensor, ...]:
        return (PageTensor("latent", (block_size, 24), shape.dtype),)


def specs_of(layers: str) -> list[AnyAttention]:
    return [KINDS[kind] for kind in layers]


@pytest.mark.parametrize(
    ("layers", "groups"),
    [
        ("FFFF", "F"),
        ("CCCFCCCF", "FCCC"),
        ("WWWWWFWWWWWF", "FWWWWW"),
        ("WFWF", "FW"),
        ("CWF", "FCW"),
        ("WCWCFF", "FWC"),
        ("CCCFCCCFC", "FCCCC"),
    ],
)
def test_groups_hold_layers_of_one_kind_and_near_equal_counts(layers: str, groups: str) -> None:
    made = group_layers(specs_of(layers))
    assert [group.spec for group in made] == specs_of(groups)
    assert sorted(layer for group in made for layer in group.layers) == list(range(len(layers)))
    for group in made:
        assert all(KINDS[layers[layer]] == group.spec for layer in group.layers)
    counts = [len(group.layers) for group in made]
    assert max(counts) - min(counts) <= 1


def test_places_count_a_groups_earlier_layers_in_the_stage() -> None:
    groups = group_layers(specs_of("CCCFCCCF"))
    assert kv_places(groups, 0, 8) == [(1, 0), (2, 0), (3, 0), (0, 0), (1, 1), (2, 1), (3, 1), (0, 1)]
    assert kv_places(groups, 3, 8) == [(0, 0), (1, 0), (2, 0), (3, 0), (0, 1)]


@pytest.mark.parametrize(("stage", "depth"), [((0, 8), 2), ((0, 4), 1), ((3, 8), 2), ((1, 2), 1)])
def test_a_page_has_room_for_the_fullest_group_of_its_stage(stage: tuple[int, int], depth: int) -> None:
    page = stage_page(group_layers(specs_of("CCCFCCCF")), SHAPE, 4, *stage)
    assert len(page.depths) == depth
    assert page.nbytes == depth * 4 * FullAttention().bytes_per_token(SHAPE)


def test_a_kind_may_keep_something_else_but_not_beside_keys_and_values() -> None:
    page = stage_page(group_layers([Latent(), Latent()]), SHAPE, 16, 0, 2)
    assert [[tensor.name for tensor in tensors] for tensors in page.depths] == [["latent"], ["latent"]]
    assert page.nbytes == 2 * 16 * 24 * 4 == 2 * 16 * Latent().bytes_per_token(SHAPE)
    with pytest.raises(ConfigError, match="different tensors"):
        stage_page(group_layers([Latent(), FullAttention()]), SHAPE, 16, 0, 2)


@pytest.mark.parametrize("seed", range(40))
def test_the_longest_sequence_is_the_longest_that_fits(seed: int) -> None:
    rng = random.Random(seed)
    groups = group_layers(specs_of(rng.choice(["F", "C", "W", "CF", "WF", "CWF", "CCCF", "WWWWWF"])))
    size, step, limit, pages = rng.randint(1, 6), rng.choice([1, 4, 30]), rng.randint(1, 120), rng.randint(0, 90)
    needed = SequencePages(groups, size, step)
    fitting = [n for n in range(1, limit + 1) if needed.of(n) <= pages]
    found = needed.longest(pages, limit)
    if limit in fitting:
        assert found == limit
    else:
        assert found == max((n for n in fitting if n % size == 0), default=0)
