"""From an architecture's name to the model of one rank."""

from __future__ import annotations

import torch

from remuda.config.model import ModelConfig
from remuda.layers.base import BuildContext
from remuda.models.interfaces import Model, SupportsPP
from remuda.models.llama.model import LlamaForCausalLM
from remuda.models.llama4.model import Llama4ForCausalLM, Llama4ForConditionalGeneration
from remuda.parallel.collectives import Communicator
from remuda.parallel.topology import Topology
from remuda.planner.layout import check_tensor_parallel
from remuda.protocol.errors import ConfigError

MODELS: dict[str, type[Model]] = {
    "Llama4ForConditionalGeneration": Llama4ForConditionalGeneration,
    "Llama4ForCausalLM": Llama4ForCausalLM,
    "LlamaForCausalLM": LlamaForCausalLM,
}


def check_architecture(architecture: str, pp_size: int) -> None:
    """Raise ConfigError, saying what is supported, if no model is registered or it cannot run in `pp_size` stages."""
    model = MODELS.get(architecture)
    if model is None:
        raise ConfigError(f"architecture {architecture!r} is not supported; supported: {', '.join(MODELS)}")
    if pp_size > 1 and not issubclass(model, SupportsPP):
        able = ", ".join(name for name, candidate in MODELS.items() if issubclass(candidate, SupportsPP))
        raise ConfigError(f"{architecture} does not support --pipeline-parallel-size {pp_size}; those that do: {able}")


def build_model(
    config: ModelConfig, topology: Topology, comm: Communicator, device: torch.device | str = "cpu"
) -> Model:
    """This rank's share, described but without weights: nothing is allocated before load()."""
    check_architecture(config.architecture, topology.pp_size)
    check_tensor_parallel(config, topology.tp_size, topology.expert_parallel)
    return MODELS[config.architecture](BuildContext(config, topology, comm, torch.device(device)))
