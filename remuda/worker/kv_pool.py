"""The pages of this rank's KV cache.

P pages, K key/value heads of this rank, D head_dim. One (k, v) pair per *depth*: the position of a layer among the
layers of its KV group that this stage holds. See `config/kv_groups.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from remuda.config.engine import CacheConfig
from remuda.config.kv_groups import page_bytes, stage_depth
from remuda.config.model import ModelConfig
from remuda.parallel.topology import Topology

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

NewPages = Callable[[tuple[int, ...], torch.dtype], torch.Tensor]


def compute_dtype(model: ModelConfig) -> torch.dtype:
    return _DTYPES[model.dtype]


class KVPool:
    """Tensors `kv[d] = (k, v)`, each [P, K, block_size, D], as `new_pages` makes them on the device: zeros, since
    kernels rely on finite numbers. Page 0 is the null page: no sequence writes it."""

    def __init__(
        self, model: ModelConfig, cache: CacheConfig, topology: Topology, pages: int, new_pages: NewPages
    ) -> None:
        depth = stage_depth(model, topology.first_layer, topology.last_layer)
        shape = (pages, max(1, model.num_kv_heads // topology.tp_size), cache.block_size, model.head_dim)
        dtype = compute_dtype(model)
        self.kv = [(new_pages(shape, dtype), new_pages(shape, dtype)) for _ in range(depth)]


def bytes_per_page(model: ModelConfig, cache: CacheConfig, topology: Topology) -> int:
    return page_bytes(model, topology.first_layer, topology.last_layer, topology.tp_size, cache.block_size)
