"""How layers share one pool of KV pages: the rule that the engine (accounting) and the ranks (tensors) both read.

A page holds `block_size` tokens of every layer of one *group*. Layers of a group have the same attention, and groups
are near equal in layer count, also within any contiguous pipeline stage, so that every page has the same size and any
page can serve any group. Llama 4 (three chunked layers, then a full one) gives four groups: full and chunked 0, 1, 2.
A group whose attention forgets gives a page back as soon as nobody will see it again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from remuda.kv.specs import AttentionSpec, KVShape, PageTensor
from remuda.protocol.errors import ConfigError


@dataclass(frozen=True)
class KVGroup:
    spec: AttentionSpec
    layers: tuple[int, ...]  # global layer indices


@dataclass(frozen=True)
class StagePage:
    """A page on one rank of a stage. `depths`: tensors of a group's first layer in the stage, of its second, ..."""

    depths: tuple[tuple[PageTensor, ...], ...]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensors in self.depths for tensor in tensors)


def group_layers(specs: Sequence[AttentionSpec]) -> tuple[KVGroup, ...]:
    """Groups of the layers with these specs: first those that keep everything; equal layers are dealt round-robin."""
    layers_of: dict[AttentionSpec, list[int]] = {}
    for index, spec in enumerate(specs):
        layers_of.setdefault(spec, []).append(index)
    unit = min(len(layers) for layers in layers_of.values())
    groups: list[KVGroup] = []
    for spec in sorted(layers_of, key=lambda spec: spec.forgets):
        layers = layers_of[spec]
        count = round(len(layers) / unit)
        groups += [KVGroup(spec, tuple(layers[g::count])) for g in range(count)]
    return tuple(groups)


def kv_places(groups: Sequence[KVGroup], first_layer: int, last_layer: int) -> list[tuple[int, int]]:
    """(group, depth) of each layer of the stage [first_layer, last_layer): depth counts the group's earlier ones."""
    places: dict[int, tuple[int, int]] = {}
    for g, group in enumerate(groups):
        here = [layer for layer in group.layers if first_layer <= layer < last_layer]
        places.update({layer: (g, depth) for depth, layer in enumerate(here)})
    return [places[layer] for layer in range(first_layer, last_layer)]


def stage_page(
    groups: Sequence[KVGroup], shape: KVShape, block_size: int, first_layer: int, last_layer: int
) -> StagePage:
    """The page of a stage: it has room for the layers of the fullest group there.

    Raises:
        ConfigError: layers keep different tensors, so that their pages cannot be of one size.
    """
    kinds = {group.spec.tensors(shape, block_size) for group in groups}
    if len(kinds) > 1:
        raise ConfigError("layers of this model keep different tensors in the KV cache: such a mix is not supported")
    depth = 1 + max(depth for _, depth in kv_places(groups, first_layer, last_layer))
    return StagePage((kinds.pop(),) * depth)


class SequencePages:
    """How many pages one sequence holds at most on its way to a length, in steps of up to `step_tokens`."""

    def __init__(self, groups: Sequence[KVGroup], block_size: int, step_tokens: int = 1) -> None:
        self._block_size = block_size
        most_blocks = Counter(group.spec.most_blocks(block_size, step_tokens) for group in groups)
        self._caps = list(most_blocks.items())  # (blocks held at most, groups that it is true of)

    def of(self, length: int) -> int:
        """An upper bound for `length` tokens."""
        blocks, pages = -(-length // self._block_size), 0
        for most, groups in self._caps:
            pages += groups * (blocks if blocks < most else most)
        return pages

    def longest(self, pages: int, limit: int) -> int:
        """Tokens of the longest sequence that `pages` pages hold: `limit`, or whole blocks below it, perhaps none."""
        if self.of(limit) <= pages:
            return limit
        size = self._block_size
        return size * bisect_right(range(1, limit // size + 1), pages, key=lambda blocks: self.of(blocks * size))
