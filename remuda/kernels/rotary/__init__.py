"""From a fused QKV projection to finished queries and KV pages."""

from remuda.kernels.rotary.naive import HeadLayout, rope_kv, rotate

__all__ = ["HeadLayout", "rope_kv", "rotate"]
