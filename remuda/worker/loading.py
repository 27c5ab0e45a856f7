"""Build one rank's shard of the model and fill it from the checkpoint."""

from __future__ import annotations

import torch

from remuda.config.engine import EngineConfig
from remuda.layers.base import BuildContext
from remuda.models.interfaces import Model
from remuda.models.registry import build_model
from remuda.parallel.collectives import Communicator
from remuda.parallel.topology import Topology, expert_range
from remuda.weights.loader import LoadReport, Progress
from remuda.worker.simulated import SimulatedModel


def load_model(
    config: EngineConfig, topology: Topology, tp: Communicator, device: torch.device, progress: Progress
) -> tuple[Model, LoadReport]:
    """Raises ConfigError or CheckpointError naming file, tensor and expectation."""
    if config.simulation is not None:
        model: Model = SimulatedModel(config.simulation, BuildContext(config.model, topology, tp, str(device)))
    else:
        model = build_model(config.model, topology, tp, device)
    return model, model.load(progress)


def whole_experts(config: EngineConfig, topology: Topology) -> list[int]:
    """Expert ids that this rank holds whole, or [] when every expert is cut across the TP ranks."""
    moe = config.model.moe
    if moe is None or not topology.expert_parallel:
        return []
    return list(expert_range(moe.num_experts, topology.tp_size, topology.tp_rank))
