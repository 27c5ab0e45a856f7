"""Options -> EngineConfig, exactly once. Every later process gets the result and decides nothing again."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from remuda.config.engine import CacheConfig, EngineConfig, ParallelConfig, SchedulerConfig
from remuda.config.model import ModelConfig
from remuda.protocol.errors import ConfigError

MAX_STAGES_AHEAD = 64
MAX_THREADS = 1024
PartitionLayers = Callable[[ModelConfig, int, int], tuple[int, ...]]
"""(model, tensor_parallel_size, pipeline_parallel_size) -> layers per stage; the planner has one by costs."""


LongestSequence = Callable[[ModelConfig, ParallelConfig, CacheConfig, int], int]
"""Tokens, up to the model's length, of the longest sequence that the KV cache will hold, as can be told now, when
a step computes up to so many tokens (the last argument)."""


def resolve_engine(
    options: Mapping[str, Any], model: ModelConfig, partition_layers: PartitionLayers, longest: LongestSequence
) -> EngineConfig:
    """Check every combination and fill in every default that depends on the model or the machine.

    The caller has made sure that the model can be cut into `tensor_parallel_size` (planner.layout).

    Raises:
        ConfigError: one line that names the options and the values that would work.
    """
    parallel = _parallel(options, model, partition_layers)
    cache = CacheConfig(
        block_size=options["block_size"],
        kv_cache_memory_bytes=options["kv_cache_memory_bytes"],
        memory_utilization=options["gpu_memory_utilization"] or CacheConfig().memory_utilization,
        num_pages_override=options["num_gpu_blocks_override"],
        enable_prefix_caching=options["enable_prefix_caching"],
    )
    scheduler = _scheduler(options, model, parallel, cache, longest)
    return EngineConfig(
        model=model, parallel=parallel, cache=cache, scheduler=scheduler,
        executor_backend=_executor_backend(options, parallel), device=_device(options),
        threads_per_rank=_threads_per_rank(options), native_kernels=options["native_kernels"],
        seed=options.get("seed", 0), startup_timeout_s=options["startup_timeout"],
    )  # fmt: skip


def _parallel(options: Mapping[str, Any], model: ModelConfig, partition_layers: PartitionLayers) -> ParallelConfig:
    tp, pp = options["tensor_parallel_size"], options["pipeline_parallel_size"]
    nnodes, node_rank = options["nnodes"], options["node_rank"]
    if pp > model.num_layers:
        raise ConfigError(f"--pipeline-parallel-size {pp}: the model has only {model.num_layers} layers")
    if (tp * pp) % nnodes:
        raise ConfigError(f"--nnodes {nnodes} does not divide the {tp} x {pp} = {tp * pp} ranks")
    if not 0 <= node_rank < nnodes:
        raise ConfigError(f"--node-rank {node_rank} must be 0 to {nnodes - 1} with --nnodes {nnodes}")
    if nnodes > 1 and pp % nnodes:
        raise ConfigError(
            f"--nnodes {nnodes}: each node holds whole stages; choose a --pipeline-parallel-size it divides"
        )
    return ParallelConfig(
        tensor_parallel_size=tp, pipeline_parallel_size=pp, enable_expert_parallel=options["enable_expert_parallel"],
        layer_partition=_layer_partition(options["pipeline_layer_partition"], model, tp, pp, partition_layers),
        nnodes=nnodes, node_rank=node_rank, master_addr=options["master_addr"], master_port=options["master_port"],
        distributed_timeout_s=options["distributed_timeout_seconds"],
    )  # fmt: skip


def _executor_backend(options: Mapping[str, Any], parallel: ParallelConfig) -> str:
    backend: str = options["distributed_executor_backend"]
    if backend in ("ray", "external_launcher"):
        raise ConfigError(
            f"--distributed-executor-backend {backend} is not supported yet: use mp, with --nnodes for several machines"
        )
    if backend == "mp":
        return "mp"
    if parallel.world_size > 1:
        raise ConfigError(f"--distributed-executor-backend {backend} runs one rank, not {parallel.world_size}: use mp")
    return "inproc"


def _layer_partition(
    given: str | None, model: ModelConfig, tp: int, pp: int, partition_layers: PartitionLayers
) -> tuple[int, ...]:
    if given is None:
        return partition_layers(model, tp, pp)
    parts = given.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"--pipeline-layer-partition {given}: write layers per stage, for example 25,23")
    layers = tuple(int(part) for part in parts)
    if len(layers) != pp or sum(layers) != model.num_layers:
        raise ConfigError(
            f"--pipeline-layer-partition {given} has {len(layers)} stages and {sum(layers)} layers, "
            f"not {pp} stages and {model.num_layers} layers"
        )
    return layers


def _scheduler(
    options: Mapping[str, Any],
    model: ModelConfig,
    parallel: ParallelConfig,
    cache: CacheConfig,
    longest: LongestSequence,
) -> SchedulerConfig:
    length = options["max_model_len"]
    if length is None:
        length = longest(model, parallel, cache, options["max_num_batched_tokens"])
    elif length > model.max_position_embeddings:
        raise ConfigError(
            f"--max-model-len {length} exceeds the model's {model.max_position_embeddings} (max_position_embeddings)"
        )
    seqs, batched = options["max_num_seqs"], options["max_num_batched_tokens"]
    if seqs > batched:
        raise ConfigError(f"--max-num-seqs {seqs} exceeds --max-num-batched-tokens {batched}: raise the latter")
    if not options["enable_chunked_prefill"]:
        raise ConfigError("--no-enable-chunked-prefill is not supported: raise --max-num-batched-tokens instead")
    threshold = options["long_prefill_token_threshold"]
    if threshold < 0:
        raise ConfigError("--long-prefill-token-threshold must not be negative")
    return SchedulerConfig(
        max_num_seqs=seqs, max_num_batched_tokens=batched, max_model_len=length, policy=options["scheduling_policy"],
        max_waiting=options["max_waiting"], max_prefill_chunk=threshold or None,
        steps_in_flight=_steps_in_flight(options, parallel.pipeline_parallel_size),
    )  # fmt: skip


def _steps_in_flight(options: Mapping[str, Any], stages: int) -> int:
    steps = options["steps_in_flight"]
    if not 0 <= steps <= MAX_STAGES_AHEAD:
        raise ConfigError(f"--steps-in-flight must be 0 (automatic) to {MAX_STAGES_AHEAD}, not {steps}")
    if not options["async_scheduling"]:
        if steps > stages:
            raise ConfigError(f"--no-async-scheduling contradicts --steps-in-flight {steps}")
        return steps or stages
    return steps


def _device(options: Mapping[str, Any]) -> str:
    if options["dtype"] in ("half", "float16"):
        raise ConfigError("--dtype float16 is not supported on CPU: use bfloat16 or float32")
    return "cpu"


def _threads_per_rank(options: Mapping[str, Any]) -> int:
    """As told by the flag or by OMP_NUM_THREADS; 0 lets every node deal its cores to its ranks."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    threads: int = options["threads_per_rank"] or (int(told) if told.isdecimal() else 0)
    if not 0 <= threads <= MAX_THREADS:  # torch dies of far more
        raise ConfigError(f"--threads-per-rank (or OMP_NUM_THREADS) must be 0 to {MAX_THREADS}, not {threads}")
    return threads


def describe(config: EngineConfig) -> str:
    """One line for start-up: what is about to run."""
    p, s, model = config.parallel, config.scheduler, config.model
    layout = f"TP {p.tensor_parallel_size} x PP {p.pipeline_parallel_size}"
    model_len = f"{s.max_model_len:,} tokens"
    if s.max_model_len < model.max_position_embeddings:
        model_len += f" (of the model's {model.max_position_embeddings:,})"
    experts = ", experts dealt out whole" if p.enable_expert_parallel else ""
    return f"{model.architecture} in {model.dtype}, {layout}{experts}, sequences of up to {model_len}"
