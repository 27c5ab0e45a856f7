"""What an operator reads when start-up is complete: who holds what, and how much the cache carries."""

from __future__ import annotations

from collections.abc import Iterable

from remuda.config.engine import EngineConfig
from remuda.engine.ports import StartReport
from remuda.engine.scheduler import Scheduler

_MIB = 1 << 20


def max_concurrency(config: EngineConfig, scheduler: Scheduler) -> float:
    """Sequences of the full model length that the KV cache holds at once."""
    kv = scheduler.kv
    return (kv.pool.num_pages - 1) / kv.pages_of(config.scheduler.max_model_len)


def layout_report(config: EngineConfig, start: StartReport, scheduler: Scheduler) -> str:
    """A line per rank (layers, experts, weights, cache), then what the cache means for requests."""
    tp_size = config.parallel.tensor_parallel_size
    lines = []
    for memory in start.memory:
        stage, tp_rank = divmod(memory.rank, tp_size)
        experts = f", experts {spans(memory.experts)}" if memory.experts else ""
        cache = start.kv_pages * memory.page_bytes / _MIB
        lines.append(
            f"  rank {memory.rank} (tp{tp_rank} pp{stage}): layers {spans(memory.layers)}{experts}, "
            f"weights {memory.weight_bytes / _MIB:,.0f} MiB, KV cache {cache:,.0f} MiB"
        )
    length = config.scheduler.max_model_len
    lines.append(
        f"  KV cache: {start.kv_pages - 1:,} pages of {config.cache.block_size} tokens per group of layers; "
        f"{max_concurrency(config, scheduler):,.1f} sequences of {length:,} tokens at once"
    )
    if scheduler.longest_sequence < length:
        lines.append(f"  The cache holds at most {scheduler.longest_sequence:,} tokens of one sequence.")
    return "\n".join(lines)


def spans(indices: Iterable[int]) -> str:
    """[0, 1, 2, 5] -> "0-2, 5"."""
    parts: list[list[int]] = []
    for index in sorted(indices):
        if parts and index == parts[-1][1] + 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts) or "none"
