"""Nodes other than the first: wait for the engine on node 0, run this node's ranks, end when it ends."""

from __future__ import annotations

import msgspec

from remuda.config.engine import EngineConfig
from remuda.executor.address import Address
from remuda.executor.launcher import Launcher
from remuda.protocol.errors import ConfigError


def run_node(config: EngineConfig) -> None:
    """Serve as node `config.parallel.node_rank` until the engine ends. Blocks; must be called before torch is imported.

    The engine's configuration counts; of this node's own only the place and the checkpoint path are used, and the
    model read from that path must be the engine's. Raises RemudaError if the engine refuses or cannot be reached.
    """
    parallel = config.parallel
    launcher = Launcher(Address.tcp(parallel.master_addr, parallel.master_port), parallel.node_rank, store_fd=None)
    theirs = launcher.join(parallel.distributed_timeout_s)
    here = msgspec.structs.replace(theirs.model, path=config.model.path)
    if here != config.model:
        raise ConfigError(f"the model at {config.model.path} is not the one that node 0 serves ({theirs.model.path})")
    launcher.run(
        msgspec.structs.replace(
            theirs, model=here, parallel=msgspec.structs.replace(theirs.parallel, node_rank=parallel.node_rank)
        )
    )
