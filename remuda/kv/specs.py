"""What a layer's attention sees and keeps: a class per kind, the one place that knows what tells the kinds apart.

Everything follows from two rules about positions. A query at position p sees the keys first_visible(p) ... p, and the
key k is seen for the last time just before position forgotten_at(k). Neither falls as positions grow. The engine counts
and frees pages by them, the ranks allocate the tensors that a spec declares, layers tell kernels its chunk or window.

A further kind is a further class: one that keeps a latent instead of keys and values declares other `tensors`.
"""

from __future__ import annotations

from math import prod

import msgspec

from remuda.protocol.dtypes import VALUE_BYTES

NEVER = 1 << 62  # past any position or count


class KVShape(msgspec.Struct, frozen=True):
    """Keys, or values, of one token in one layer on one rank."""

    heads: int
    head_dim: int
    dtype: str


class PageTensor(msgspec.Struct, frozen=True):
    """One layer's part of a page: the pool holds a tensor [pages, *shape] of it."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * VALUE_BYTES[self.dtype]


class AttentionSpec(msgspec.Struct, frozen=True):
    """Causal attention that keeps keys and values of every token forever; kinds that see less say what they forget."""

    @property
    def chunk(self) -> int | None:
        """Positions per chunk, if a query sees its own chunk only."""
        return None

    @property
    def window(self) -> int | None:
        """Positions that a query sees, its own included, if these are a fixed number."""
        return None

    @property
    def forgets(self) -> bool:
        """Whether any key is ever given back."""
        return False

    # --------------------------------------------------------------------------------------------- visibility

    def first_visible(self, position: int) -> int:
        """The first key that a query at `position` sees, and with it every later query may."""
        return 0

    def forgotten_at(self, key: int) -> int:
        """The first position, from `key` on, whose query does not see `key` any more."""
        return NEVER

    # ------------------------------------------------------------------------------------------------- blocks

    def first_block(self, position: int, block_size: int) -> int:
        """The first block that is still needed when `position` is next: those before it can be freed.

        So a prefix hit of length `position` needs the blocks from this one on.
        """
        return self.first_visible(position) // block_size

    def next_border(self, position: int, block_size: int) -> int:
        """The first position after `position` at which a block more can be freed."""
        return self.forgotten_at((self.first_block(position, block_size) + 1) * block_size - 1)

    def most_blocks(self, block_size: int, step_tokens: int) -> int:
        """Most blocks that a sequence of any length holds at once when it is computed in steps of `step_tokens`.

        During a step these are what its first query sees and what the step writes.
        """
        return NEVER

    # ------------------------------------------------------------------------------------------------- memory

    def tensors(self, shape: KVShape, block_size: int) -> tuple[PageTensor, ...]:
        """What a page holds of one layer, in the order in which kernels are given it."""
        block = (shape.heads, block_size, shape.head_dim)
        return PageTensor("k", block, shape.dtype), PageTensor("v", block, shape.dtype)

    def bytes_per_token(self, shape: KVShape) -> int:
        """Of one layer on one rank."""
        return sum(tensor.nbytes for tensor in self.tensors(shape, block_size=1))


class FullAttention(AttentionSpec, frozen=True, tag="full"):
    """Over every position up to the query's own."""


class ChunkedLocal(AttentionSpec, frozen=True, tag="chunked"):
    """Within the query's own chunk; chunks start at multiples of `chunk`."""

    chunk: int

    @property
    def forgets(self) -> bool:
        return True

    def first_visible(self, position: int) -> int:
        return position // self.chunk * self.chunk

    def forgotten_at(self, key: int) -> int:
        return (key // self.chunk + 1) * self.chunk

    def most_blocks(self, block_size: int, step_tokens: int) -> int:
        span = self.chunk - 1 + step_tokens
        if self.chunk % block_size == 0:  # a chunk begins with a block
            return -(-span // block_size)
        return _blocks_touched(span, block_size)


class SlidingWindow(AttentionSpec, frozen=True, tag="window"):
    """Over the last `window` positions, the query's own included."""

    window: int

    @property
    def forgets(self) -> bool:
        return True

    def first_visible(self, position: int) -> int:
        return max(0, position - self.window + 1)

    def forgotten_at(self, key: int) -> int:
        return key + self.window

    def most_blocks(self, block_size: int, step_tokens: int) -> int:
        return _blocks_touched(self.window - 1 + step_tokens, block_size)


AnyAttention = FullAttention | ChunkedLocal | SlidingWindow  # what travels: told apart by its tag


def _blocks_touched(span: int, block_size: int) -> int:
    """Most blocks that `span` consecutive positions overlap, wherever they start."""
    return (span + block_size - 2) // block_size + 1
