"""From NCCL to the kernels of this folder, for ranks whose GPUs reach each other's memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from remuda.parallel.groups import Groups
from remuda.parallel.peers.communicator import PeerCommunicator
from remuda.parallel.peers.link import PeerLink
from remuda.parallel.peers.memory import CudaPeerMemory
from remuda.parallel.topology import Topology


@dataclass(frozen=True)
class Traffic:
    """The largest things that ranks exchange."""

    hidden_size: int
    dtype: torch.dtype
    max_tokens: int  # of a step
    max_rows: int
    plans_in_flight: int


def use_peer_memory(groups: Groups, topology: Topology, traffic: Traffic, device: torch.device, one_host: bool) -> None:
    """Exchange what `groups` communicates through. Collective over the replica; without peer access NCCL goes on.

    `one_host`: all ranks of the replica are on this machine (those of a stage always are).
    """
    if groups.store is None or not _reach_each_other(groups, topology):
        return
    groups.waits_gave_up = torch.zeros(1, dtype=torch.int32, device=device)
    if topology.tp_size > 1:
        memory = _memory(groups.store, f"tp{topology.stage}", topology.tp_rank, topology.tp_size, device)
        nccl = groups.tp.transport
        nccl.all_reduce_(torch.zeros(1, device=device))  # its first use takes a second, now rather than in a request
        groups.tp.switch(
            PeerCommunicator(
                memory, nccl, traffic.hidden_size, traffic.dtype, groups.waits_gave_up,
                dependent_launch=torch.cuda.get_device_capability(device) >= (9, 0),
            )
        )  # fmt: skip
    if topology.pp_size > 1 and one_host:
        memory = _memory(groups.store, "replica", topology.rank, topology.world_size, device)
        groups.link = PeerLink(
            memory, topology, groups.waits_gave_up, slots=traffic.plans_in_flight + 1,
            max_hidden_bytes=traffic.max_tokens * traffic.hidden_size * traffic.dtype.itemsize,
            max_rows=traffic.max_rows,
        )  # fmt: skip


def _reach_each_other(groups: Groups, topology: Topology) -> bool:
    """Whether this machine's devices of the replica do; the same answer on every rank that asks about them."""
    here = min(topology.world_size, torch.cuda.device_count())
    return CudaPeerMemory.reaches(list(range(here)))


def _memory(store: Any, name: str, rank: int, size: int, device: torch.device) -> CudaPeerMemory:
    return CudaPeerMemory(f"remuda-{name}", dist.PrefixStore(f"peers-{name}", store), rank, size, device)
