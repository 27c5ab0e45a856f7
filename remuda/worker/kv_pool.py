"""The pages of this rank's KV cache.

P pages, K key/value heads of this rank, B block_size, D head_dim. A tuple of tensors per *depth*: the position of a
layer among the layers of its KV group that this stage holds. See `kv/groups.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from remuda.config.engine import CacheConfig
from remuda.config.model import ModelConfig
from remuda.kv.groups import StagePage, stage_page
from remuda.parallel.topology import Topology

NewPages = Callable[[tuple[int, ...], torch.dtype], torch.Tensor]


def compute_dtype(model: ModelConfig) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, model.dtype)
    return dtype


class KVPool:
    """The tensors that the layers' specs declare, such as `kv[d] = (k, v)`, each [P, K, B, D].

    `new_pages` makes them on the device: zeros, since kernels rely on finite numbers. Page 0 is the null page: no
    sequence writes it.
    """

    def __init__(
        self, model: ModelConfig, cache: CacheConfig, topology: Topology, pages: int, new_pages: NewPages
    ) -> None:
        self.kv = [
            tuple(new_pages((pages, *part.shape), getattr(torch, part.dtype)) for part in parts)
            for parts in page_of(model, cache, topology).depths
        ]


def page_of(model: ModelConfig, cache: CacheConfig, topology: Topology) -> StagePage:
    """What one page holds on this rank."""
    shape = model.kv_shape(topology.tp_size)
    return stage_page(model.kv_groups, shape, cache.block_size, topology.first_layer, topology.last_layer)
