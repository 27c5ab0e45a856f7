"""What a flag comes to once the model and the machine are known, and the combinations that are refused.

Everything here raises ConfigError: one line that names the options and the values that would work.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import msgspec

from remuda.config.engine import CacheConfig
from remuda.config.model import ModelConfig
from remuda.config.quant import FP8_ONLINE
from remuda.kernels.table import TILED_HEAD_DIMS
from remuda.models.registry import check_architecture
from remuda.planner.gpus import RESERVE_BYTES, torch_has_cuda, visible_gpus
from remuda.planner.host import free_host_bytes
from remuda.planner.layout import check_tensor_parallel
from remuda.planner.partition import partition_layers
from remuda.protocol.errors import ConfigError

_MAX_STEPS_IN_FLIGHT = 64
_MAX_THREADS = 1024  # torch dies of far more
_STEP_TOKENS = {"cpu": 2048, "cuda": 8192}  # by default: what keeps a device busy


def quantized(method: str | None, model: ModelConfig) -> ModelConfig:
    """--quantization: fp8 is made of weights that are not quantized yet; other methods confirm config.json."""
    if method == "fp8":
        if model.quant is not None:
            raise ConfigError("--quantization fp8: the checkpoint is quantized already; leave the option out")
        return msgspec.structs.replace(model, quant=FP8_ONLINE)
    if method is not None and model.quant is None:
        raise ConfigError(f"--quantization {method}: the checkpoint is not quantized; leave the option out, or use fp8")
    return model


def check_layout(options: Mapping[str, Any], model: ModelConfig) -> None:
    """The model must be cut into the ranks, and the ranks dealt to the nodes."""
    tp, pp = options["tensor_parallel_size"], options["pipeline_parallel_size"]
    nnodes, node_rank = options["nnodes"], options["node_rank"]
    check_architecture(model.architecture, pp)
    check_tensor_parallel(model, tp, options["enable_expert_parallel"])
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


def layer_partition(given: str | None, options: Mapping[str, Any], model: ModelConfig) -> tuple[int, ...]:
    """--pipeline-layer-partition, or a cut by what each layer costs."""
    pp = options["pipeline_parallel_size"]
    if given is None:
        return partition_layers(model, options["tensor_parallel_size"], pp)
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


def step_tokens(asked: int | None, seqs: int, device: str) -> int:
    """--max-num-batched-tokens; by default what suits the device, but room for a token of every sequence."""
    if asked is None:
        return max(seqs, _STEP_TOKENS[device])
    if seqs > asked:
        raise ConfigError(f"--max-num-seqs {seqs} exceeds --max-num-batched-tokens {asked}: raise the latter")
    return asked


def check_scheduling(options: Mapping[str, Any]) -> None:
    if not options["enable_chunked_prefill"]:
        raise ConfigError("--no-enable-chunked-prefill is not supported: raise --max-num-batched-tokens instead")
    if options["long_prefill_token_threshold"] < 0:
        raise ConfigError("--long-prefill-token-threshold must not be negative")


def model_length(asked: int | None, model: ModelConfig) -> int | None:
    """--max-model-len; None: what the cache will hold."""
    if asked is not None and asked > model.max_position_embeddings:
        raise ConfigError(
            f"--max-model-len {asked} exceeds the model's {model.max_position_embeddings} (max_position_embeddings)"
        )
    return asked


def steps_in_flight(steps: int, options: Mapping[str, Any]) -> int:
    """--steps-in-flight (0: stages + 1), at most one for each stage without --async-scheduling."""
    if not 0 <= steps <= _MAX_STEPS_IN_FLIGHT:
        raise ConfigError(f"--steps-in-flight must be 0 (automatic) to {_MAX_STEPS_IN_FLIGHT}, not {steps}")
    if options["async_scheduling"]:
        return steps
    stages: int = options["pipeline_parallel_size"]
    if steps > stages:
        raise ConfigError(f"--no-async-scheduling contradicts --steps-in-flight {steps}")
    return steps or stages


def executor_backend(name: str, world_size: int) -> str:
    """mp, or inproc, which vLLM calls uni."""
    if name in ("ray", "external_launcher"):
        raise ConfigError(
            f"--distributed-executor-backend {name} is not supported yet: use mp, with --nnodes for several machines"
        )
    if name == "mp":
        return name
    if world_size > 1:
        raise ConfigError(f"--distributed-executor-backend {name} runs one rank, not {world_size}: use mp")
    return "inproc"


def device(name: str, dtype: str, ranks_here: int) -> str:
    """Where the ranks compute; auto: on GPUs where there are any and torch is built for them.

    Raises ConfigError if the device lacks the dtype, or there are fewer GPUs than ranks of this node.
    """
    gpus = visible_gpus() if name != "cpu" else []
    chosen = name if name != "auto" else "cuda" if gpus and torch_has_cuda() else "cpu"
    if chosen == "cpu" and dtype == "float16":
        raise ConfigError("--dtype float16 needs a GPU: use bfloat16 or float32 on CPU")
    if chosen == "cuda" and not torch_has_cuda():
        raise ConfigError("--device cuda: the installed torch is built for CPU; install a CUDA build of it")
    if chosen == "cuda" and len(gpus) < ranks_here:
        raise ConfigError(
            f"{ranks_here} ranks of this machine need a GPU each, but {len(gpus)} are visible: lower "
            "--tensor-parallel-size or --pipeline-parallel-size, or look at CUDA_VISIBLE_DEVICES and nvidia-smi"
        )
    return chosen


def with_kv_dtype(name: str, model: ModelConfig, device: str) -> ModelConfig:
    """--kv-cache-dtype. Only the kernels of GPUs read pages of float8, of some head sizes."""
    if name == "auto":
        return model
    if device != "cuda":
        raise ConfigError(f"--kv-cache-dtype {name} needs a GPU: leave it at auto on CPU")
    if model.head_dim not in TILED_HEAD_DIMS:
        sizes = ", ".join(map(str, TILED_HEAD_DIMS))
        raise ConfigError(f"--kv-cache-dtype {name} does not serve heads of {model.head_dim} numbers, only of {sizes}")
    return msgspec.structs.replace(model, kv_dtype="float8_e4m3fn")


def native_kernels(asked: str, device: str) -> str:
    """--native-kernels. They are a CPU's: nothing would come of requiring them on a GPU."""
    if asked == "require" and device != "cpu":
        raise ConfigError(f"--native-kernels require has no meaning on {device}: leave it out, or use --device cpu")
    return asked


def trace_dir(told: str | None, device: str) -> str:
    """--trace-dir, absolute for the ranks' sake."""
    if told is None:
        return ""
    if device != "cuda":
        raise ConfigError("--trace-dir needs GPUs, whose events it is made of")
    return os.path.abspath(told)


def free_bytes(device: str, ranks_here: int, cache: CacheConfig, step_bytes: int) -> int:
    """What is free for weights and caches of all ranks of this machine together: of its memory, or, of the fullest of
    its GPUs, for each.

    A GPU keeps what it needs for the largest step and for itself and, where nobody has said how large the cache is to
    be, what --gpu-memory-utilization leaves to others.
    """
    if device == "cpu":
        return free_host_bytes()
    told = cache.kv_cache_memory_bytes is not None or cache.num_pages_override is not None
    share_of_others = 0.0 if told else 1.0 - cache.memory_utilization
    free = min(gpu.free_bytes - int(gpu.total_bytes * share_of_others) for gpu in visible_gpus()[:ranks_here])
    return ranks_here * max(0, free - step_bytes - RESERVE_BYTES)


def threads_per_rank(told: int) -> int:
    """By the flag or by OMP_NUM_THREADS; 0 lets every node deal its cores to its ranks."""
    by_environment = os.environ.get("OMP_NUM_THREADS", "")
    threads = told or (int(by_environment) if by_environment.isdecimal() else 0)
    if not 0 <= threads <= _MAX_THREADS:
        raise ConfigError(f"--threads-per-rank (or OMP_NUM_THREADS) must be 0 to {_MAX_THREADS}, not {threads}")
    return threads
