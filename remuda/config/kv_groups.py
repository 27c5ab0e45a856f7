"""How layers share one pool of KV pages: the rule that the engine (accounting) and the ranks (tensors) both read.

A page holds `block_size` tokens of every layer of one *group*. Groups are uniform in attention kind and near equal in
layer count, also within any contiguous pipeline stage, so that every page has the same size and any page can serve
any group. Llama 4 (three chunked layers, then a full one) gives four groups: chunked 0, 1, 2 and full. A chunked group
gives a page back as soon as its chunk is past.
"""

from __future__ import annotations

import msgspec

from remuda.config.model import AttentionKind, ModelConfig


class KVGroup(msgspec.Struct, frozen=True):
    kind: AttentionKind
    chunk: int | None  # positions per chunk, for chunked groups
    layers: tuple[int, ...]  # global layer indices


def kv_groups(model: ModelConfig) -> tuple[KVGroup, ...]:
    """Full-attention groups first, then chunked ones; layers of one kind are dealt round-robin to its groups."""
    by_kind: dict[AttentionKind, list[int]] = {}
    for index, layer in enumerate(model.layers):
        by_kind.setdefault(layer.attention, []).append(index)
    unit = min(len(indices) for indices in by_kind.values())
    groups: list[KVGroup] = []
    for kind in (AttentionKind.FULL, AttentionKind.CHUNKED):
        indices = by_kind.get(kind, [])
        count = max(1, round(len(indices) / unit)) if indices else 0
        chunk = model.attention_chunk if kind is AttentionKind.CHUNKED else None
        groups += [KVGroup(kind, chunk, tuple(indices[g::count])) for g in range(count)]
    return tuple(groups)


def group_of_layers(model: ModelConfig) -> list[tuple[int, int]]:
    """Per global layer: (group index, position among the group's layers)."""
    place: dict[int, tuple[int, int]] = {}
    for g, group in enumerate(kv_groups(model)):
        place.update({layer: (g, i) for i, layer in enumerate(group.layers)})
    return [place[i] for i in range(model.num_layers)]


def stage_depth(model: ModelConfig, first_layer: int, last_layer: int) -> int:
    """Layers of the fullest group within a stage: the page of that stage has room for this many layers."""
    return max(sum(first_layer <= layer < last_layer for layer in g.layers) for g in kv_groups(model))


def page_bytes(model: ModelConfig, first_layer: int, last_layer: int, tp_size: int, block_size: int) -> int:
    """Bytes of one page on a rank of the stage [first_layer, last_layer)."""
    heads = max(1, model.num_kv_heads // tp_size)
    element = 4 if model.dtype == "float32" else 2
    return stage_depth(model, first_layer, last_layer) * 2 * heads * block_size * model.head_dim * element


def pages_of_sequence(model: ModelConfig, length: int, step_tokens: int, block_size: int) -> int:
    """Pages that one sequence of `length` tokens holds at its widest, when a step computes up to `step_tokens`.

    A chunked group keeps its current chunk, and during a step also what the step writes.
    """
    pages = 0
    for group in kv_groups(model):
        span = length if group.chunk is None else min(length, group.chunk + min(length, step_tokens))
        pages += min(-(-span // block_size) + 1, -(-length // block_size))
    return pages
