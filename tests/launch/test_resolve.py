"""Options -> EngineConfig: defaults from the model and the machine, and refusals that say what would work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from remuda.config.arguments import ENGINE_FLAGS
from remuda.config.engine import CacheConfig, EngineConfig, ParallelConfig
from remuda.config.parser import options_from_keywords
from remuda.kv.groups import SequencePages
from remuda.launch import meaning
from remuda.launch.resolve import engine_config
from remuda.models.llama.tiny import llama3_config
from remuda.models.llama4.tiny import maverick_config
from remuda.planner.gpus import GpuMemory
from remuda.planner.memory import plan_memory
from remuda.planner.share import Share
from remuda.protocol.errors import ConfigError
from remuda.tiny.float8 import fp8_config


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Eight layers, eight heads, eight experts: a config is all that resolving needs."""
    (tmp_path / "config.json").write_text(json.dumps(maverick_config({}, {})))
    return tmp_path


def resolve(model: Path, **keywords: Any) -> EngineConfig:
    return engine_config(options_from_keywords(ENGINE_FLAGS, keywords) | {"model": str(model)})


def refused(model: Path, **keywords: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(model, **keywords)
    return caught.value.message


def test_fp8_on_the_fly_halves_the_weights_and_refuses_what_is_quantized_already(model: Path) -> None:
    plain, made = resolve(model, max_model_len=64), resolve(model, max_model_len=64, quantization="fp8")
    assert plain.model.quant is None and made.model.quant is not None
    before, after = (Share(config.model, 1).stage(0, 8).total_bytes for config in (plain, made))
    assert after < 0.75 * before
    assert "not quantized; leave the option out" in refused(model, quantization="compressed-tensors")
    fp8 = fp8_config(maverick_config({}, {}), ["lm_head"])
    (model / "config.json").write_text(json.dumps(fp8))
    assert resolve(model, max_model_len=64, quantization="compressed-tensors").model.quant is not None
    assert "quantized already" in refused(model, quantization="fp8")


def test_the_reference_layout(model: Path) -> None:
    config = resolve(model, tensor_parallel_size=8, pipeline_parallel_size=2, max_model_len=128)
    assert config.parallel.world_size == 16
    assert sum(config.parallel.layer_partition) == config.model.num_layers
    assert len(config.parallel.layer_partition) == 2
    assert config.scheduler.max_model_len == 128


def test_defaults_come_from_the_model(model: Path) -> None:
    config = resolve(model, kv_cache_memory_bytes=1 << 30)
    assert config.scheduler.max_model_len == config.model.max_position_embeddings
    assert config.model.dtype == config.model.checkpoint_dtype
    assert resolve(model, dtype="float", max_model_len=64).model.dtype == "float32"


@pytest.mark.parametrize("pages", [40, 77, 150])
@pytest.mark.parametrize("step", [16, 2048])
def test_the_automatic_length_is_the_longest_that_the_cache_holds(model: Path, pages: int, step: int) -> None:
    config = resolve(model, num_gpu_blocks_override=pages, max_num_batched_tokens=step, max_num_seqs=4)
    length = config.scheduler.max_model_len
    assert length % 16 == 0
    needed = SequencePages(config.model.kv_groups, 16, step)
    assert needed.of(length) < pages <= needed.of(length + 16)


def test_of_a_gpu_the_fullest_decides_less_the_step_and_what_is_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    gib = 1 << 30
    gpus = [GpuMemory("H100", 80 * gib, free * gib) for free in (79, 70, 10)]
    monkeypatch.setattr(meaning, "visible_gpus", lambda: gpus)
    assert meaning.free_bytes("cuda", 2, CacheConfig(memory_utilization=0.75), 3 * gib) == 2 * (70 - 20 - 3 - 2) * gib
    assert meaning.free_bytes("cuda", 2, CacheConfig(kv_cache_memory_bytes=gib), 3 * gib) == 2 * (70 - 3 - 2) * gib
    assert meaning.free_bytes("cuda", 3, CacheConfig(), 3 * gib) == 0


def test_a_float8_cache_holds_twice_the_tokens_and_is_for_gpus(model: Path) -> None:
    resolved = resolve(model, max_model_len=64).model
    assert meaning.with_kv_dtype("auto", resolved, "cpu") is resolved
    assert "needs a GPU" in refused(model, max_model_len=64, kv_cache_dtype="fp8")
    with pytest.raises(ConfigError, match="heads of 80 numbers, only of 16, 32"):
        meaning.with_kv_dtype("fp8", msgspec.structs.replace(resolved, head_dim=80), "cuda")
    halved = meaning.with_kv_dtype("fp8_e4m3", resolved, "cuda")
    parallel = ParallelConfig(2, 1, layer_partition=(resolved.num_layers,))
    pages = [plan_memory(asked, parallel, block_size=16)[0].page_bytes for asked in (resolved, halved)]
    value_bytes = 4 if resolved.dtype == "float32" else 2
    assert pages[0] == value_bytes * pages[1]


def test_kernels_of_a_cpu_cannot_be_required_on_a_gpu(model: Path) -> None:
    assert resolve(model, max_model_len=64, native_kernels="require").native_kernels == "require"
    assert meaning.native_kernels("auto", "cuda") == "auto"
    with pytest.raises(ConfigError, match="--native-kernels require has no meaning on cuda"):
        meaning.native_kernels("require", "cuda")


@pytest.mark.parametrize(("device", "tokens"), [("cpu", 2048), ("cuda", 8192)])
def test_the_largest_step_suits_the_device(device: str, tokens: int) -> None:
    assert meaning.step_tokens(None, 256, device) == tokens
    assert meaning.step_tokens(None, 10_000, device) == 10_000
    assert meaning.step_tokens(512, 256, device) == 512


def test_explicit_stage_boundaries(model: Path) -> None:
    assert resolve(
        model, pipeline_parallel_size=3, pipeline_layer_partition="1,3,4", max_model_len=64
    ).parallel.layer_partition == (1, 3, 4)


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({"tensor_parallel_size": 3}, "sizes that work: 1, 2, 4, 8"),
        ({"pipeline_parallel_size": 9}, "8"),
        ({"pipeline_parallel_size": 2, "pipeline_layer_partition": "4,5"}, "9 layers"),
        ({"pipeline_parallel_size": 2, "pipeline_layer_partition": "8"}, "1 stages"),
        ({"pipeline_layer_partition": "0,8"}, "layers per stage"),
        ({"tensor_parallel_size": 2, "nnodes": 3}, "does not divide"),
        ({"tensor_parallel_size": 2, "nnodes": 2}, "whole stages"),
        ({"pipeline_parallel_size": 2, "nnodes": 2, "node_rank": 2}, "0 to 1"),
        ({"tensor_parallel_size": 2, "distributed_executor_backend": "inproc"}, "use mp"),
        ({"distributed_executor_backend": "ray"}, "not supported yet"),
        ({"max_model_len": 1 << 30}, "max_position_embeddings"),
        ({"max_num_seqs": 512, "max_num_batched_tokens": 256}, "--max-num-batched-tokens 256"),
        ({"enable_chunked_prefill": False}, "--max-num-batched-tokens"),
        ({"num_gpu_blocks_override": 3, "max_model_len": None}, "not enough for one sequence"),
        ({"steps_in_flight": 1000}, "--steps-in-flight"),
        ({"async_scheduling": False, "steps_in_flight": 5}, "contradicts"),
        ({"dtype": "half"}, "float16"),
        ({"threads_per_rank": -1}, "--threads-per-rank"),
        ({"threads_per_rank": 10**8}, "0 to 1024"),
        ({"num_gpu_blocks_override": 10**12}, "--num-gpu-blocks-override: the KV caches"),
        (
            {
                "kv_cache_memory_bytes": 1 << 60,
                "max_model_len": 8192,
                "max_num_seqs": 10**6,
                "max_num_batched_tokens": 10**6,
            },
            "--kv-cache-memory-bytes: the KV caches",
        ),
        ({"long_prefill_token_threshold": -1}, "negative"),
        ({"trace_dir": "traces"}, "--trace-dir needs GPUs"),
    ],
)
def test_what_cannot_work_is_refused(model: Path, keywords: dict[str, Any], expected: str) -> None:
    assert expected in refused(model, **({"max_model_len": 64} | keywords))


def test_expert_parallel_needs_experts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(llama3_config({}, {})))
    assert "no experts" in refused(tmp_path, enable_expert_parallel=True)


def test_steps_in_flight_follow_async_scheduling(model: Path) -> None:
    assert resolve(model, max_model_len=64).scheduler.steps_in_flight == 0
    assert resolve(model, max_model_len=64, async_scheduling=False).scheduler.steps_in_flight == 1


def test_the_configuration_hash_is_the_same_on_every_node(model: Path) -> None:
    layout = {"pipeline_parallel_size": 2, "nnodes": 2, "max_model_len": 64}
    digests = {resolve(model, **layout, node_rank=rank).digest() for rank in range(2)}
    assert len(digests) == 1


def test_no_flag_is_ignored(model: Path) -> None:
    """Every flag of the engine is read on the way to its configuration, but for the tokenizer's."""

    class Recorder(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            self.setdefault("read", set()).add(key)
            return super().__getitem__(key)

    options = Recorder(options_from_keywords(ENGINE_FLAGS, {}) | {"model": str(model), "max_model_len": 64})
    engine_config(options)
    names = {flag.key for group in ENGINE_FLAGS for flag in group.flags}
    of_the_tokenizer = {"tokenizer"}
    assert names - options["read"] == of_the_tokenizer
