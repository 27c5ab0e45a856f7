"""Which runner a configuration asks for. Each is imported only where it runs."""

from __future__ import annotations

from importlib import import_module

from remuda.config.engine import EngineConfig
from remuda.parallel.groups import Groups
from remuda.parallel.topology import Topology, node_of, node_ranks
from remuda.protocol.errors import ConfigError
from remuda.worker.kv_pool import compute_dtype
from remuda.worker.runner import AnyRunner


def make_runner(config: EngineConfig, topology: Topology, groups: Groups) -> AnyRunner:
    """Raises ConfigError for a device that there is no runner for."""
    if config.simulation is not None:
        from remuda.worker.simulated import SimulatedRunner

        return SimulatedRunner(config, topology, groups)
    if config.device == "cpu":
        from remuda.worker.cpu.runner import CpuRunner

        return CpuRunner(config, topology, groups)
    if config.device == "cuda":
        return _on_gpu(config, topology, groups)
    raise ConfigError(f"this version of remuda does not compute on {config.device!r}: use cpu or cuda")


def import_ahead(config: EngineConfig) -> None:
    """Import what ranks of this configuration will run, so that those forked from this process share it.

    A GPU's kernels are left to its rank: a process that forks must not have touched a device.
    """
    from remuda.models.registry import ARCHITECTURES

    import_module("remuda.weights.dummy")
    if (architecture := ARCHITECTURES.get(config.model.architecture)) is not None:
        architecture.model_class()
    if config.device == "cpu":
        from remuda.kernels.select import kernel_table, native_table

        import_module("remuda.worker.cpu.runner")
        kernel_table(config.device, config.model.dtype)
        native_table()


def gpu_index(topology: Topology, config: EngineConfig) -> int:
    """Which of the node's visible GPUs a rank has: they are dealt in order."""
    parallel = config.parallel
    return topology.rank - node_ranks(node_of(topology.rank, parallel), parallel).start


def _on_gpu(config: EngineConfig, topology: Topology, groups: Groups) -> AnyRunner:
    from remuda.parallel.peers.connect import Traffic, use_peer_memory
    from remuda.worker.cuda.device import Gpu
    from remuda.worker.cuda.runner import CudaRunner

    gpu = Gpu(gpu_index(topology, config))
    scheduler, model = config.scheduler, config.model
    if model.kv_dtype == "float8_e4m3fn" and not gpu.has_float8:
        raise ConfigError("--kv-cache-dtype fp8 needs a GPU of compute capability 8.9 or higher: leave it at auto")
    traffic = Traffic(
        hidden_size=model.hidden_size,
        dtype=compute_dtype(model),
        max_tokens=scheduler.max_num_batched_tokens,
        max_rows=scheduler.max_num_seqs,
        plans_in_flight=scheduler.steps_in_flight or topology.pp_size + 1,
    )
    use_peer_memory(groups, topology, traffic, gpu.torch_device, one_host=config.parallel.nnodes == 1)
    return CudaRunner(config, topology, groups, gpu)
