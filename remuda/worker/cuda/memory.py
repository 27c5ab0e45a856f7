"""What a rank may give to its KV cache on a GPU, from what is free once the weights are in."""

from __future__ import annotations

from remuda.config.engine import EngineConfig
from remuda.parallel.topology import Topology
from remuda.protocol.dtypes import VALUE_BYTES

_CONTEXT_BYTES = 1 << 30  # NCCL's buffers, captured graphs, workspaces of libraries, what fragments
_LOGITS_AT_ONCE = 3  # copies of float32 logits while tokens are drawn


def activation_bytes(config: EngineConfig, topology: Topology) -> int:
    """Upper bound of what a step of the most tokens needs beside weights and pages."""
    model, scheduler = config.model, config.scheduler
    element = VALUE_BYTES[model.dtype]
    tokens, tp = scheduler.max_num_batched_tokens, topology.tp_size
    attention = (model.num_heads * 2 + model.num_kv_heads * 2) * model.head_dim // tp
    widest = model.intermediate_size // tp
    if model.moe is not None:
        widest = max(widest, model.moe.top_k * model.moe.intermediate_size // tp + model.moe.num_experts)
    width = 6 * model.hidden_size + attention + 3 * widest
    rows = min(scheduler.max_num_seqs, tokens)
    logits = 4 * _LOGITS_AT_ONCE * rows * model.vocab_size if topology.is_last_stage else 0
    return tokens * width * element + logits


def kv_bytes_of_gpu(free: int, total: int, config: EngineConfig, topology: Topology) -> int:
    """`free` of `total` bytes remain with all weights loaded; the utilization leaves a share of the card to others."""
    usable = free - int(total * (1.0 - config.cache.memory_utilization))
    return max(0, usable - activation_bytes(config, topology) - _CONTEXT_BYTES)
