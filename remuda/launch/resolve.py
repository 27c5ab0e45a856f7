"""Options -> EngineConfig, for every command and for `LLM`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from remuda.config.engine import CacheConfig, EngineConfig, ParallelConfig
from remuda.config.model import ModelConfig
from remuda.config.resolve import resolve_engine
from remuda.executor.sizing import most_useful_pages
from remuda.hub.source import HubOptions, find_model
from remuda.kv.groups import SequencePages
from remuda.models.registry import read_model_config
from remuda.planner.host import free_host_bytes, kv_bytes_of_rank
from remuda.planner.layout import check_tensor_parallel
from remuda.planner.memory import StageMemory, check_weights_fit, plan_memory
from remuda.planner.partition import partition_layers
from remuda.protocol.errors import ConfigError

_CERTAINTY = 0.9  # free memory moves while we start
_DTYPES = {"float": "float32", "half": "float16"}


def engine_config(options: Mapping[str, Any]) -> EngineConfig:
    """Find the model, resolve everything against its config, and only then download what it still lacks."""
    hub = HubOptions(options["revision"], options["download_dir"], options["hf_token"])
    source = find_model(options["model"], hub)
    config = _resolved(source.directory, options)
    source.complete()
    return config


def _resolved(directory: Path, options: Mapping[str, Any]) -> EngineConfig:
    dtype = _DTYPES.get(options["dtype"], options["dtype"])
    model = read_model_config(directory, dtype)
    check_tensor_parallel(model, options["tensor_parallel_size"], options["enable_expert_parallel"])
    config = resolve_engine(options, model, partition_layers, longest_sequence)
    check_host_memory(model, config.parallel)
    check_cache_fits(config)
    return config


def check_host_memory(model: ModelConfig, parallel: ParallelConfig) -> None:
    """Raise ConfigError, with what would fit, if this node's share of the weights exceeds its free memory."""
    stages = stages_of_this_node(model, parallel, block_size=1)
    free = free_host_bytes()
    if sum(stage.weight_bytes for stage in stages) * parallel.tensor_parallel_size > free:
        check_weights_fit(model, parallel, free // (len(stages) * parallel.tensor_parallel_size))


def check_cache_fits(config: EngineConfig) -> None:
    """Raise ConfigError if the KV cache that the user asked for exceeds this node's free memory.

    Its pages become resident only when they are written: without this check the kernel would end a rank days later.
    """
    cache, parallel = config.cache, config.parallel
    if cache.kv_cache_memory_bytes is None and cache.num_pages_override is None:
        return
    page_bytes = [stage.page_bytes for stage in stages_of_this_node(config.model, parallel, cache.block_size)]
    pages = cache.num_pages_override
    if pages is None:
        pages = min(kv_bytes_per_rank(config.model, parallel, cache) // max(page_bytes), most_useful_pages(config))
    needed, free = pages * sum(page_bytes) * parallel.tensor_parallel_size, free_host_bytes()
    if needed > free:
        flag = "--kv-cache-memory-bytes" if cache.num_pages_override is None else "--num-gpu-blocks-override"
        raise ConfigError(
            f"{flag}: the KV caches of this machine's ranks would take {needed / 2**30:,.1f} GiB, "
            f"but {free / 2**30:,.1f} GiB are free"
        )


def longest_sequence(model: ModelConfig, parallel: ParallelConfig, cache: CacheConfig, step_tokens: int) -> int:
    """Tokens, up to the model's length, of the longest sequence that the KV cache will hold; whole pages.

    Raises:
        ConfigError: not even one page's worth fits.
    """
    check_host_memory(model, parallel)  # before a length is blamed for what the weights do
    largest_page = max(stage.page_bytes for stage in plan_memory(model, parallel, cache.block_size))
    pages = cache.num_pages_override or kv_bytes_per_rank(model, parallel, cache) // largest_page
    size, limit = cache.block_size, model.max_position_embeddings
    longest = SequencePages(model.kv_groups, size, step_tokens).longest(pages - 1, limit)  # page 0 is nobody's
    if not longest:
        raise ConfigError(
            f"the KV cache has room for {pages} pages of {size} tokens, not enough for one sequence: raise "
            "--kv-cache-memory-bytes or --gpu-memory-utilization"
        )
    return longest


def kv_bytes_per_rank(model: ModelConfig, parallel: ParallelConfig, cache: CacheConfig) -> int:
    """What --kv-cache-memory-bytes says, or a share of what the weights will leave of this machine's memory."""
    if cache.kv_cache_memory_bytes is not None:
        return cache.kv_cache_memory_bytes
    here = stages_of_this_node(model, parallel, cache.block_size)
    weights = sum(stage.weight_bytes for stage in here) * parallel.tensor_parallel_size
    left = (free_host_bytes() - weights) * _CERTAINTY
    return kv_bytes_of_rank(left, cache.memory_utilization, len(here) * parallel.tensor_parallel_size)


def stages_of_this_node(model: ModelConfig, parallel: ParallelConfig, block_size: int) -> list[StageMemory]:
    per_node = parallel.pipeline_parallel_size // parallel.nnodes
    return plan_memory(model, parallel, block_size)[parallel.node_rank * per_node :][:per_node]
