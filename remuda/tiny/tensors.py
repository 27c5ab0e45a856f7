"""Random weights that behave: unit-sized activations, clear routing and clear greedy choices.

A tensor depends only on (seed, name, shape) and on arithmetic that is exact everywhere, so every machine makes the same
checkpoint. Routing has a margin because each token's embedding leans towards one of E directions, and every router
looks along these directions: rounding to bfloat16 rarely changes the chosen expert.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import numpy as np
import torch

from remuda.models.tiny import ORDINARY_TOKENS, Embedding, Head, Random, Router, TinyTensor

_CLUSTER = 12.0  # length of the direction in an embedding, whose noise has length sqrt(hidden)


def draw(tensors: Iterator[TinyTensor], seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor with its name, in bfloat16."""
    for tensor in tensors:
        values = np.ascontiguousarray(_values(tensor, seed), dtype=np.float32)
        yield tensor.name, torch.from_numpy(values).to(torch.bfloat16)


def _values(tensor: TinyTensor, seed: int) -> np.ndarray:
    values = _noise(seed, tensor.name, tensor.shape)
    match tensor:
        case Random(_, _, scale, around):
            return values * np.float32(scale) + np.float32(around)
        case Embedding(_, (vocab, hidden), clusters, scale):
            if clusters:
                values += np.float32(_CLUSTER) * _directions(seed, clusters, hidden)[np.arange(vocab) % clusters]
            return values * np.float32(scale)
        case Router(name, (experts, hidden)):
            order = np.argsort(_noise(seed, f"{name} order", (experts,)))
            looks = np.float32(0.25) * _directions(seed, experts, hidden)[order]
            return values * np.float32(0.1 / math.sqrt(hidden)) + looks
        case Head(name, (vocab, hidden), end_of_turn):
            return values * _row_lengths(seed, name, vocab, end_of_turn) * np.float32(2.0 / math.sqrt(hidden))
    raise TypeError(f"{tensor} is no tensor that can be drawn")


def _noise(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform, zero mean, unit variance, float32."""
    key = hashlib.sha256(f"{seed} {name} {shape}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(key[:16], "little")))
    return (generator.random(shape, dtype=np.float32) - np.float32(0.5)) * np.float32(math.sqrt(12.0))


def _directions(seed: int, experts: int, hidden: int) -> np.ndarray:
    directions = _noise(seed, "directions", (experts, hidden))
    return directions / np.sqrt((directions**2).sum(1, keepdims=True))


def _row_lengths(seed: int, name: str, vocab: int, end_of_turn: int) -> np.ndarray:
    """Uneven, for clear winners; special tokens stay out of the way, the end of turn comes up."""
    scale = 1.0 + 0.3 * _noise(seed, f"{name} scale", (vocab, 1))
    scale[ORDINARY_TOKENS:] = 0.05
    scale[end_of_turn] = 1.3
    return scale
