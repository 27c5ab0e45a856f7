"""Which tensor-parallel sizes a model can be cut into, and a clear refusal of the others."""

from __future__ import annotations

from remuda.config.model import ModelConfig
from remuda.layers.base import CannotCut
from remuda.planner.share import Share
from remuda.protocol.errors import ConfigError


def working_shares(model: ModelConfig, expert_parallel: bool = False) -> dict[int, Share]:
    """Every tensor-parallel size that can serve `model`, ascending, with a rank's share."""
    found = {}
    for tp_size in range(1, model.num_heads + 1):
        try:
            found[tp_size] = Share(model, tp_size, expert_parallel)
        except CannotCut:
            continue
    return found


def check_tensor_parallel(model: ModelConfig, tp_size: int, expert_parallel: bool = False) -> None:
    """Raise ConfigError, naming the sizes that work, if the model cannot be cut into `tp_size` shards."""
    if expert_parallel and model.moe is None:
        raise ConfigError(f"--enable-expert-parallel: {model.architecture} at {model.path} has no experts")
    try:
        if tp_size < 1:
            raise CannotCut(tp_size, "it must be at least 1")
        Share(model, tp_size, expert_parallel)
    except CannotCut as obstacle:
        sizes = ", ".join(map(str, working_shares(model, expert_parallel)))
        raise ConfigError(f"{obstacle.message}; sizes that work: {sizes}") from None
