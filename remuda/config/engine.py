"""Everything an engine is told, resolved once into frozen structs and sent whole to every process."""

from __future__ import annotations

import hashlib

import msgspec

from remuda.config.model import ModelConfig


class ParallelConfig(msgspec.Struct, frozen=True):
    """Layout. Ranks are numbered stage by stage: rank = pp_rank * tensor_parallel_size + tp_rank."""

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    enable_expert_parallel: bool = False
    layer_partition: tuple[int, ...] = ()  # layers per stage, resolved (never empty after resolve())
    nnodes: int = 1
    node_rank: int = 0
    master_addr: str = "127.0.0.1"
    master_port: int = 29551
    distributed_timeout_s: float = 60.0  # start-up rendezvous and collectives

    @property
    def world_size(self) -> int:
        return self.tensor_parallel_size * self.pipeline_parallel_size


class CacheConfig(msgspec.Struct, frozen=True):
    block_size: int = 16  # tokens per KV page
    kv_cache_memory_bytes: int | None = None  # per rank; None: by memory_utilization
    memory_utilization: float = (
        0.9  # --gpu-memory-utilization; on CPU the share of free memory (--cpu-memory-utilization)
    )
    num_pages_override: int | None = None  # --num-gpu-blocks-override
    enable_prefix_caching: bool = True


class SchedulerConfig(msgspec.Struct, frozen=True):
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    max_model_len: int = 4096
    policy: str = "fcfs"  # or "priority"
    max_waiting: int = 1024  # bounded queue: beyond it, 429
    max_prefill_chunk: int | None = None  # --long-prefill-token-threshold: cap of one prompt's share of a step
    steps_in_flight: int = 0  # 0: pipeline stages + 1 (asynchronous scheduling); 1 turns overlap off (PP 1)


class SimulationConfig(msgspec.Struct, frozen=True):
    """Replace each stage's compute by a wait: base + per decode row + per prefill token, in milliseconds."""

    base_ms: float = 5.0
    row_ms: float = 0.0
    prefill_token_ms: float = 0.0
    trace_dir: str = ""  # each stage writes stage-<n>.json here when it stops: its busy intervals


class EngineConfig(msgspec.Struct, frozen=True):
    model: ModelConfig
    parallel: ParallelConfig = ParallelConfig()
    cache: CacheConfig = CacheConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    executor_backend: str = "mp"  # a process per rank, or inproc: the one rank lives in the engine's process
    device: str = "cpu"
    threads_per_rank: int = 0  # 0: cores of this node / ranks on it, at least 1
    load_format: str = "auto"  # auto: safetensors | dummy: random weights
    enforce_eager: bool = False  # no CUDA graphs
    trace_dir: str = ""  # each rank of a GPU writes rank-<n>.json here when it stops: when its device worked on a step
    native_kernels: str = "auto"  # auto | off | require
    seed: int = 0
    startup_timeout_s: float = 600.0
    simulation: SimulationConfig | None = None

    def digest(self) -> str:
        """Equal on every process of a replica, whatever its node (node_rank and local paths are left out)."""
        same = msgspec.structs.replace(
            self,
            trace_dir="",
            parallel=msgspec.structs.replace(self.parallel, node_rank=0),
            model=msgspec.structs.replace(self.model, path=""),
        )
        # Through the wire and back, as every other process sees it: an int in a float's place becomes a float.
        received = msgspec.msgpack.decode(msgspec.msgpack.encode(same), type=EngineConfig)
        return hashlib.sha256(msgspec.json.encode(received)).hexdigest()[:16]
