"""Options -> EngineConfig, exactly once: every later process gets the result and decides nothing again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remuda.config.engine import CacheConfig, EngineConfig, ParallelConfig, SchedulerConfig
from remuda.config.model import ModelConfig
from remuda.executor.sizing import most_useful_pages
from remuda.hub.source import HubOptions, find_model
from remuda.launch import meaning
from remuda.models.registry import read_model_config
from remuda.planner.gpus import step_bytes
from remuda.planner.node import NodeMemory


def engine_config(options: Mapping[str, Any]) -> EngineConfig:
    """Find the model, resolve everything against its config, and only then download what it still lacks.

    Raises:
        ConfigError: one line that names the options and the values that would work.
    """
    hub = HubOptions(options["revision"], options["download_dir"], options["hf_token"])
    source = find_model(options["model"], hub)
    config = resolve(options, read_model_config(source.directory, options["dtype"]))
    if config.load_format == "dummy":
        source.complete_tokenizer()
    else:
        source.complete()
    return config


def resolve(options: Mapping[str, Any], model: ModelConfig) -> EngineConfig:
    """The walk: each flag of `config/arguments.py` goes into its struct here; what it means is told in `meaning.py`."""
    model = meaning.quantized(options["quantization"], model)
    meaning.check_layout(options, model)
    parallel = ParallelConfig(
        tensor_parallel_size=options["tensor_parallel_size"],
        pipeline_parallel_size=options["pipeline_parallel_size"],
        enable_expert_parallel=options["enable_expert_parallel"],
        layer_partition=meaning.layer_partition(options["pipeline_layer_partition"], options, model),
        nnodes=options["nnodes"], node_rank=options["node_rank"],
        master_addr=options["master_addr"], master_port=options["master_port"],
        distributed_timeout_s=options["distributed_timeout_seconds"],
    )  # fmt: skip
    cache = CacheConfig(
        block_size=options["block_size"], num_pages_override=options["num_gpu_blocks_override"],
        kv_cache_memory_bytes=options["kv_cache_memory_bytes"], memory_utilization=options["gpu_memory_utilization"],
        enable_prefix_caching=options["enable_prefix_caching"],
    )  # fmt: skip
    ranks_here = parallel.world_size // parallel.nnodes
    device = meaning.device(options["device"], model.dtype, ranks_here)
    model = meaning.with_kv_dtype(options["kv_cache_dtype"], model, device)
    seqs = options["max_num_seqs"]
    tokens = meaning.step_tokens(options["max_num_batched_tokens"], seqs, device)
    step = step_bytes(model, parallel.tensor_parallel_size, tokens, seqs)
    free = meaning.free_bytes(device, ranks_here, cache, step)
    memory = NodeMemory(model, parallel, cache, free, shared=device == "cpu")
    memory.check_weights()
    meaning.check_scheduling(options)
    scheduler = SchedulerConfig(
        max_num_seqs=seqs, max_num_batched_tokens=tokens,
        max_model_len=meaning.model_length(options["max_model_len"], model) or memory.longest_sequence(tokens),
        policy=options["scheduling_policy"], max_waiting=options["max_waiting"],
        max_prefill_chunk=options["long_prefill_token_threshold"] or None,
        steps_in_flight=meaning.steps_in_flight(options["steps_in_flight"], options),
    )  # fmt: skip
    config = EngineConfig(
        model=model, parallel=parallel, cache=cache, scheduler=scheduler, device=device,
        executor_backend=meaning.executor_backend(options["distributed_executor_backend"], parallel.world_size),
        threads_per_rank=meaning.threads_per_rank(options["threads_per_rank"]),
        load_format=options["load_format"], enforce_eager=options["enforce_eager"],
        trace_dir=meaning.trace_dir(options["trace_dir"], device),
        native_kernels=meaning.native_kernels(options["native_kernels"], device), seed=options.get("seed", 0),
        startup_timeout_s=options["startup_timeout"],
    )  # fmt: skip
    memory.check_cache(most_useful_pages(config))
    return config


def describe(config: EngineConfig) -> str:
    """One line for start-up: what is about to run."""
    p, s, model = config.parallel, config.scheduler, config.model
    layout = f"TP {p.tensor_parallel_size} x PP {p.pipeline_parallel_size}"
    model_len = f"{s.max_model_len:,} tokens"
    if s.max_model_len < model.max_position_embeddings:
        model_len += f" (of the model's {model.max_position_embeddings:,})"
    experts = ", experts dealt out whole" if p.enable_expert_parallel else ""
    return f"{model.architecture} in {model.dtype}, {layout}{experts}, sequences of up to {model_len}"
