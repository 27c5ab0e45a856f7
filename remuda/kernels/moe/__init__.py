"""Routing and routed experts."""

from remuda.kernels.moe.naive import PackedExperts, route_sigmoid

__all__ = ["PackedExperts", "route_sigmoid"]
