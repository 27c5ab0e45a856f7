"""Every kind of attention against its definition, position by position."""

from __future__ import annotations

import msgspec
import pytest

from remuda.config.model import LayerConfig
from remuda.kv.specs import NEVER, AnyAttention, ChunkedLocal, FullAttention, KVShape, SlidingWindow

SPECS = [
    FullAttention(),
    *(ChunkedLocal(size) for size in (1, 3, 4, 8, 13, 32)),
    *(SlidingWindow(size) for size in (1, 2, 4, 7, 8, 13, 32)),
]
BLOCKS = [1, 3, 4, 16]
LENGTH = 70


def sees(spec: AnyAttention, query: int, key: int) -> bool:
    """The definition."""
    if isinstance(spec, ChunkedLocal):
        return key <= query and query // spec.chunk == key // spec.chunk
    if isinstance(spec, SlidingWindow):
        return 0 <= query - key < spec.window
    return key <= query


def needed_blocks(spec: AnyAttention, position: int, keys: int, block_size: int) -> list[int]:
    """Blocks in which any query from `position` on sees one of the first `keys` keys."""
    queries = range(position, position + 40)
    return sorted({key // block_size for key in range(keys) if any(sees(spec, query, key) for query in queries)})


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_query_sees_from_the_first_visible_key_to_its_own(spec: AnyAttention) -> None:
    for query in range(LENGTH):
        seen = [key for key in range(LENGTH) if sees(spec, query, key)]
        assert seen == list(range(spec.first_visible(query), query + 1))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_key_is_forgotten_when_nobody_sees_it_again(spec: AnyAttention) -> None:
    assert spec.forgets == (spec.forgotten_at(0) < NEVER)
    for key in range(LENGTH):
        end = min(spec.forgotten_at(key), key + 100)
        assert all(sees(spec, query, key) for query in range(key, end))
        assert not spec.forgets or not any(sees(spec, query, key) for query in range(end, end + 100))


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("block_size", BLOCKS)
def test_blocks_are_needed_until_nobody_sees_any_of_their_keys(spec: AnyAttention, block_size: int) -> None:
    """And so a prefix hit needs the blocks that the tokens after it see."""
    for position in range(LENGTH):
        own, first = position // block_size, spec.first_block(position, block_size)
        assert needed_blocks(spec, position, position + 1, block_size) == list(range(first, own + 1))
        if position % block_size == 0:
            assert needed_blocks(spec, position, position, block_size) == list(range(first, own))


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("block_size", BLOCKS)
def test_a_border_is_where_the_next_block_can_be_freed(spec: AnyAttention, block_size: int) -> None:
    for position in range(LENGTH):
        border, first = spec.next_border(position, block_size), spec.first_block(position, block_size)
        assert border > position
        assert all(spec.first_block(p, block_size) == first for p in range(position, min(border, position + 100)))
        assert border >= NEVER or spec.first_block(border, block_size) > first


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("block_size", BLOCKS)
@pytest.mark.parametrize("step", [1, 2, 5, 64])
def test_most_blocks_bounds_what_any_step_holds(spec: AnyAttention, block_size: int, step: int) -> None:
    """A step from `start` to `length` holds what its first query sees and what it writes."""
    widest = 0
    for length in range(1, LENGTH):
        starts = range(max(0, length - step), length)
        held = [-(-length // block_size) - spec.first_block(start, block_size) for start in starts]
        widest = max(widest, *held)
        assert widest <= spec.most_blocks(block_size, step)
    assert min(spec.most_blocks(block_size, step), -(-LENGTH // block_size)) <= widest + 1, "the bound is loose"


def test_a_page_holds_keys_and_values_of_a_block() -> None:
    shape = KVShape(heads=2, head_dim=8, dtype="bfloat16")
    for spec in SPECS:
        k, v = spec.tensors(shape, block_size=16)
        assert (k.name, v.name) == ("k", "v") and k.shape == v.shape == (2, 16, 8)
        assert k.nbytes + v.nbytes == 16 * spec.bytes_per_token(shape) == 2 * 2 * 16 * 8 * 2
    narrow = msgspec.structs.replace(shape, dtype="float8_e4m3fn")
    assert FullAttention().bytes_per_token(narrow) * 2 == FullAttention().bytes_per_token(shape)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_spec_travels_with_its_layer(spec: AnyAttention) -> None:
    layer = LayerConfig(spec, rope=True, qk_norm=False, temperature_tuning=False, moe=False)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(layer), type=LayerConfig) == layer


def test_a_kernel_is_told_a_chunk_or_a_window() -> None:
    told = [(spec.chunk, spec.window) for spec in (FullAttention(), ChunkedLocal(8), SlidingWindow(9))]
    assert told == [(None, None), (8, None), (None, 9)]
