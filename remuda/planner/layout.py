"""Which tensor-parallel sizes a model can be cut into, and a clear refusal of the others."""

from __future__ import annotations

from remuda.config.model import ModelConfig
from remuda.protocol.errors import ConfigError


def _obstacle(model: ModelConfig, tp_size: int, expert_parallel: bool) -> str | None:
    """Why `tp_size` does not work, or None."""
    if model.num_heads % tp_size:
        return f"it does not divide the {model.num_heads} attention heads"
    if model.num_kv_heads % tp_size and tp_size % model.num_kv_heads:
        return f"it neither divides the {model.num_kv_heads} key/value heads nor is a multiple of them"
    if not all(layer.moe for layer in model.layers) and model.intermediate_size % tp_size:
        return f"it does not divide the dense intermediate size {model.intermediate_size}"
    if model.moe is not None:
        if model.moe.shared_intermediate_size % tp_size:
            return f"it does not divide the shared expert's intermediate size {model.moe.shared_intermediate_size}"
        if expert_parallel and tp_size > model.moe.num_experts:
            return f"there are only {model.moe.num_experts} experts to deal out"
        if not expert_parallel and model.moe.intermediate_size % tp_size:
            return f"it does not divide the experts' intermediate size {model.moe.intermediate_size}"
    return None


def working_tensor_parallel_sizes(model: ModelConfig, expert_parallel: bool = False) -> list[int]:
    """Every tensor-parallel size that can serve `model`, ascending."""
    return [size for size in range(1, model.num_heads + 1) if _obstacle(model, size, expert_parallel) is None]


def check_tensor_parallel(model: ModelConfig, tp_size: int, expert_parallel: bool = False) -> None:
    """Raise ConfigError, naming the sizes that work, if the model cannot be cut into `tp_size` shards."""
    if expert_parallel and model.moe is None:
        raise ConfigError(f"--enable-expert-parallel: {model.architecture} at {model.path} has no experts")
    obstacle = _obstacle(model, tp_size, expert_parallel) if tp_size > 0 else "it must be at least 1"
    if obstacle is not None:
        sizes = ", ".join(map(str, working_tensor_parallel_sizes(model, expert_parallel)))
        raise ConfigError(f"--tensor-parallel-size {tp_size} does not work: {obstacle}; sizes that work: {sizes}")
