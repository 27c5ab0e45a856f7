"""From an architecture's name to all that is known of it: its config reader, model and tiny checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from remuda.config.generation import with_generation_config
from remuda.config.huggingface import open_config
from remuda.config.model import ModelConfig
from remuda.layers.base import BuildContext
from remuda.models import llama, llama4, mixtral, qwen3, qwen3_moe
from remuda.models.architecture import Architecture
from remuda.models.interfaces import Model, SupportsPP
from remuda.models.tiny import TinyKind
from remuda.parallel.topology import Topology
from remuda.protocol.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from remuda.parallel.collectives import Communicator

_FOLDERS = (llama4, llama, mixtral, qwen3, qwen3_moe)
ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture for folder in _FOLDERS for architecture in folder.ARCHITECTURES
}
TINY_KINDS: dict[str, TinyKind] = {
    kind: tiny for architecture in ARCHITECTURES.values() for kind, tiny in architecture.tiny.items()
}


def read_model_config(path: str | Path, dtype: str = "auto") -> ModelConfig:
    """The model in checkpoint directory `path`, to be computed in `dtype` (auto, bfloat16 or float32).

    Raises ConfigError naming the file and the field that is missing, malformed or asks for something unsupported.
    """
    directory = Path(path)
    root = open_config(directory)
    name = str(root.values["architectures"][0])
    if name not in ARCHITECTURES:
        raise root.refuse("architectures", f"{name!r} is not supported; supported: {', '.join(ARCHITECTURES)}")
    return with_generation_config(ARCHITECTURES[name].read_config(root, directory, dtype), directory)


def check_architecture(name: str, pp_size: int) -> None:
    """Raise ConfigError, saying what is supported, if no model is registered or it cannot run in `pp_size` stages."""
    if name not in ARCHITECTURES:
        raise ConfigError(f"architecture {name!r} is not supported; supported: {', '.join(ARCHITECTURES)}")
    if pp_size > 1 and not ARCHITECTURES[name].supports(SupportsPP):
        able = ", ".join(other.name for other in ARCHITECTURES.values() if other.supports(SupportsPP))
        raise ConfigError(f"{name} does not support --pipeline-parallel-size {pp_size}; those that do: {able}")


def build_model(
    config: ModelConfig, topology: Topology, comm: Communicator, device: torch.device | str = "cpu"
) -> Model:
    """This rank's share, described but without weights: nothing is allocated before load()."""
    check_architecture(config.architecture, topology.pp_size)
    model = ARCHITECTURES[config.architecture].model_class()
    return model(BuildContext(config, topology, comm, str(device)))
