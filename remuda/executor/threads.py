"""Compute threads of a rank."""

from __future__ import annotations

import os

from remuda.config.engine import EngineConfig


def threads_of_a_rank(config: EngineConfig) -> int:
    """As told, or an equal share of the cores that this process may use, at least one."""
    parallel = config.parallel
    return config.threads_per_rank or max(1, len(os.sched_getaffinity(0)) // (parallel.world_size // parallel.nnodes))
