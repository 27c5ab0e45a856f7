"""The pages of this rank's KV cache.

P pages, K key/value heads of this rank, D head_dim. One (k, v) pair per *depth*: the position of a layer among the
layers of its KV group that this stage holds. See `config/kv_groups.py`.
"""

from __future__ import annotations

import math

import torch

from remuda.config.engine import CacheConfig
from remuda.config.kv_groups import page_bytes, stage_depth
from remuda.config.model import ModelConfig
from remuda.kernels.native.memory import huge_pages
from remuda.parallel.topology import Topology

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def compute_dtype(model: ModelConfig) -> torch.dtype:
    return _DTYPES[model.dtype]


class KVPool:
    """Tensors `kv[d] = (k, v)`, each [P, K, block_size, D]. Page 0 is the null page: no sequence writes it."""

    def __init__(
        self, model: ModelConfig, cache: CacheConfig, topology: Topology, pages: int, device: torch.device
    ) -> None:
        self.pages = pages
        depth = stage_depth(model, topology.first_layer, topology.last_layer)
        shape = (pages, max(1, model.num_kv_heads // topology.tp_size), cache.block_size, model.head_dim)
        self.kv = [
            (_pages(shape, compute_dtype(model), device), _pages(shape, compute_dtype(model), device))
            for _ in range(depth)
        ]


def bytes_per_page(model: ModelConfig, cache: CacheConfig, topology: Topology) -> int:
    return page_bytes(model, topology.first_layer, topology.last_layer, topology.tp_size, cache.block_size)


def _pages(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros (kernels rely on finite numbers). On CPU straight from the kernel: resident only where a sequence wrote."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return huge_pages(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)
