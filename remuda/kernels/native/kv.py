"""C views of a layer's KV pages and of a step's batch, made once and reused by every call."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch

from remuda.kernels.batch import BatchView
from remuda.kernels.native.structs import KVLayer, KVStep
from remuda.kernels.table import HeadNorm

_NO_NORM = (-1.0, False, None, None)


@lru_cache(maxsize=4096)
def _layer(
    k: int, v: int, page_step: int, kv_heads: int, block_size: int, head_dim: int,
    heads: int, chunk: int, scale: float, interleaved: bool,
    norm_eps: float, norm_first: bool, q_norm: int | None, k_norm: int | None,
) -> tuple[int, KVLayer]:  # fmt: skip
    """Address and owner of a struct that holds nothing but its arguments, so that it may outlive the pages."""
    struct = KVLayer(
        k=k, v=v, page_step=page_step, chunk=chunk, scale=scale, norm_eps=norm_eps, heads=heads, kv_heads=kv_heads,
        head_dim=head_dim, block_size=block_size, interleaved=interleaved,
        norm_first=norm_first, q_norm=q_norm, k_norm=k_norm,
    )  # fmt: skip
    return ctypes.addressof(struct), struct


def layer(
    k: torch.Tensor,
    v: torch.Tensor,
    heads: int,
    chunk: int = 0,
    scale: float = 1.0,
    interleaved: bool = False,
    norm: HeadNorm | None = None,
) -> int:
    """Address of the kv_layer of pages k, v [P, K, B, D] (each page dense)."""
    _, kv_heads, block_size, head_dim = k.shape
    return _layer(
        k.data_ptr(), v.data_ptr(), k.stride(0), kv_heads, block_size, head_dim, heads, chunk, scale, interleaved,
        *(_NO_NORM if norm is None else _norm(norm)),
    )[0]  # fmt: skip


def _norm(norm: HeadNorm) -> tuple[float, bool, int | None, int | None]:
    if norm.q_weight_D is None or norm.k_weight_D is None:
        return norm.eps, norm.before_rope, None, None
    return norm.eps, norm.before_rope, norm.q_weight_D.data_ptr(), norm.k_weight_D.data_ptr()


def step(batch: BatchView, group: int) -> int:
    """Address of the kv_step of one group; kept with the batch, which owns the tensors it points into."""
    key = ("native", group)
    made = batch.plans.get(key)
    if made is None:
        table_SB, places_T = batch.tables_GSB[group], batch.places_GT[group]
        struct = KVStep(
            query_start=batch.query_start_S1.data_ptr(), context=batch.context_S.data_ptr(), tables=table_SB.data_ptr(),
            places=places_T.data_ptr(), table_step=table_SB.stride(0), rows=batch.context_S.shape[0],
            tokens=places_T.shape[0],
        )  # fmt: skip
        made = batch.plans[key] = (ctypes.addressof(struct), struct)
    address: int = made[0]
    return address
