"""The C structures of gemm.h and kv.h, field by field, and the signatures of the exported kernels."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p


class PackedWeight(ctypes.Structure):
    """gemm.h packed_weight."""

    _fields_ = [
        ("data", c_void_p), ("scale", c_void_p), ("bias", c_void_p), ("n", c_int64), ("k", c_int64),
        ("k_tiles", c_int32), ("panels", c_int32), ("gated", c_int32), ("fp8", c_int32),
    ]  # fmt: skip


class KVLayer(ctypes.Structure):
    """kv.h kv_layer."""

    _fields_ = [
        ("k", c_void_p), ("v", c_void_p), ("q_norm", c_void_p), ("k_norm", c_void_p),
        ("page_step", c_int64), ("chunk", c_int64),
        ("scale", c_float), ("norm_eps", c_float),
        ("heads", c_int32), ("kv_heads", c_int32), ("head_dim", c_int32), ("block_size", c_int32),
        ("interleaved", c_int32), ("norm_first", c_int32),
    ]  # fmt: skip


class KVStep(ctypes.Structure):
    """kv.h kv_step."""

    _fields_ = [
        ("query_start", c_void_p), ("context", c_void_p), ("tables", c_void_p), ("places", c_void_p),
        ("table_step", c_int64), ("rows", c_int64), ("tokens", c_int64),
    ]  # fmt: skip


_P, _N, _I, _F = c_void_p, c_int64, c_int32, c_float

SIGNATURES: dict[str, tuple[type | None, list[type]]] = {
    "remuda_init": (c_int32, []),
    "remuda_set_threads": (None, [_I, _I]),
    "remuda_threads": (c_int32, []),
    "remuda_packed_size": (c_int64, [_N, _N, _I]),
    "remuda_pack": (None, [_P, _P, _N, _N, _N, _N, _I, _I]),
    "remuda_linear": (None, [_P, _P, _N, _N, _P, _N, _I]),
    "remuda_rms_norm": (None, [_P, _P, _P, _P, _N, _N, _F]),
    "remuda_silu_mul": (None, [_P, _P, _N, _N]),
    "remuda_rope_kv": (None, [_P, _P, _P, _N, _P, _P]),
    "remuda_attention": (None, [_P, _P, _P, _N, _P]),
    "remuda_route": (None, [_P, _P, _P, _N, _N, _N, _I]),
    "remuda_experts": (None, [_P, _P, _N, _P, _N, _P, _P, _N, _N, _P, _N, _I]),
}
