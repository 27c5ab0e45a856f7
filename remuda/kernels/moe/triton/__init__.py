"""Experts on GPUs in Triton: nothing waits for the host, grids depend on shapes alone, so graphs can hold them."""

from remuda.kernels.moe.triton.block import fuse_sigmoid_moe
from remuda.kernels.moe.triton.experts import Experts
from remuda.kernels.moe.triton.int4 import Int4Experts
from remuda.kernels.moe.triton.route import route_sigmoid, route_softmax, router_logits

__all__ = ["Experts", "Int4Experts", "fuse_sigmoid_moe", "route_sigmoid", "route_softmax", "router_logits"]
