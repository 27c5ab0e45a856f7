"""Which runner a configuration asks for. Each is imported only where it runs."""

from __future__ import annotations

from remuda.config.engine import EngineConfig
from remuda.parallel.groups import Groups
from remuda.parallel.topology import Topology
from remuda.protocol.errors import ConfigError
from remuda.worker.runner import AnyRunner


def make_runner(config: EngineConfig, topology: Topology, groups: Groups) -> AnyRunner:
    """Raises ConfigError for a device that there is no runner for."""
    if config.simulation is not None:
        from remuda.worker.simulated import SimulatedRunner

        return SimulatedRunner(config, topology, groups)
    if config.device == "cpu":
        from remuda.worker.cpu.runner import CpuRunner

        return CpuRunner(config, topology, groups)
    raise ConfigError(f"this version of remuda does not compute on {config.device!r}: use --device cpu")
