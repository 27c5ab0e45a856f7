"""How a tiny checkpoint is described: config.json and the tensors of the published layout, without their numbers.

Every architecture's tiny.py describes its kinds with what is here; remuda/tiny draws the numbers and writes the files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Config = dict[str, Any]
ORDINARY_TOKENS = 1000  # of the tiny tokenizer; a family's special tokens follow


@dataclass(frozen=True)
class SpecialTokens:
    """A family's special tokens: id = published id - first published special id + ORDINARY_TOKENS."""

    offsets: Mapping[str, int]  # name -> published id - first published special id
    bos: str | None  # written in front of every text
    end_of_turn: str
    pad: str
    template: str  # chat template, a file in remuda/assets
    visible: tuple[str, ...] = ()  # those that belong to the text: decoding keeps them

    def __getitem__(self, name: str) -> int:
        return ORDINARY_TOKENS + self.offsets[name]

    def names(self) -> list[str]:
        """In id order, gaps filled with reserved ones, up to a multiple of 8."""
        count = max(self.offsets.values()) + 1
        by_offset = {offset: name for name, offset in self.offsets.items()}
        return [by_offset.get(at, f"<|reserved_special_token_{at}|>") for at in range(count + -count % 8)]

    @property
    def vocab_size(self) -> int:
        return ORDINARY_TOKENS + len(self.names())


@dataclass(frozen=True)
class TinyTensor:
    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Random(TinyTensor):
    scale: float  # standard deviation
    around: float = 0.0


@dataclass(frozen=True)
class Embedding(TinyTensor):
    """Rows that lean towards one of `clusters` directions, along which routers look; 0: none."""

    clusters: int = 0
    scale: float = 1.0


@dataclass(frozen=True)
class Router(TinyTensor):
    pass


@dataclass(frozen=True)
class Head(TinyTensor):
    end_of_turn: int  # the id that comes up often enough to end a text


Tensors = Iterator[TinyTensor]


@dataclass(frozen=True)
class Float8:
    """Which tensors are stored in float8 with a scale per output channel, as compressed-tensors does."""

    tensors: str  # pattern of their whole names before; fused experts become a module each
    ignore: tuple[str, ...] = ()  # quantization_config.ignore; empty: the name of every other linear module


@dataclass(frozen=True)
class Int4:
    """Which linear modules are stored as packed 4-bit integers with a scale per group of inputs, likewise."""

    tensors: str
    ignore: tuple[str, ...]
    group_size: int


@dataclass(frozen=True)
class TinyKind:
    """One kind of tiny checkpoint."""

    about: str  # one line
    config: Callable[[Config, Config], Config]  # (changes of the text config, of the vision config) -> config.json
    tensors: Callable[[Config], Tensors]  # of that config
    tokens: SpecialTokens
    quantized: Float8 | Int4 | None = None
    files: Callable[[Config], dict[str, Config]] = lambda config: {}  # more JSON files of that config


def linear(module: str, outputs: int, inputs: int, gain: float = 1.0, bias: bool = False) -> Tensors:
    yield Random(f"{module}.weight", (outputs, inputs), gain / math.sqrt(inputs))
    if bias:
        yield Random(f"{module}.bias", (outputs,), 0.1)


def norm(module: str, size: int, bias: bool = False) -> Tensors:
    yield Random(f"{module}.weight", (size,), 0.2, around=1.0)
    if bias:
        yield Random(f"{module}.bias", (size,), 0.1)


def attention(layer: str, text: Config, head_dim: int) -> Tensors:
    """Grouped-query attention and both norms of one decoder layer."""
    hidden, queries = text["hidden_size"], text["num_attention_heads"] * head_dim
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield from norm(f"{layer}.{name}", hidden)
    yield from linear(f"{layer}.self_attn.q_proj", queries, hidden, 1.2)
    for name in "kv":
        yield from linear(f"{layer}.self_attn.{name}_proj", text["num_key_value_heads"] * head_dim, hidden, 1.2)
    yield from linear(f"{layer}.self_attn.o_proj", hidden, queries)


def mlp(prefix: str, hidden: int, inner: int) -> Tensors:
    yield from linear(f"{prefix}.gate_proj", inner, hidden)
    yield from linear(f"{prefix}.up_proj", inner, hidden)
    yield from linear(f"{prefix}.down_proj", hidden, inner)


def no_vision(changes: Config) -> None:
    """Changes of a vision config that the kind does not have are a mistake of the caller."""
    if changes:
        raise ValueError(f"this kind has no vision config to change: {', '.join(changes)}")
