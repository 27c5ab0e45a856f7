"""Build the communication groups of one rank: its tensor-parallel peers and its pipeline neighbours."""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from remuda.parallel import shm, sockets
from remuda.parallel.collectives import SingleRank, Switchable, TorchDistributed
from remuda.parallel.p2p import PipelineLink, TorchLink
from remuda.parallel.topology import Topology
from remuda.protocol.errors import PeerLost


class MeshError(PeerLost):
    """Ranks could not find or reach each other in time. The message names the group and what to check."""


@dataclass(frozen=True)
class Rendezvous:
    """Where the ranks of a replica meet: a key-value store that rank 0 serves."""

    host: str
    port: int
    timeout_s: float = 60.0
    listen_fd: int | None = None  # rank 0: a listening socket, bound by the parent so that the port is known early
    ranks_per_node: int = 1 << 30  # ranks are dealt to nodes in order


@dataclass
class Groups:
    """What a worker communicates through. `tp.switch` exchanges the transport between steps."""

    tp: Switchable
    link: PipelineLink | None  # None with one stage
    store: Any = None
    world_size: int = 1
    rank: int = 0
    stage: int = 0
    timeout_s: float = 60.0
    waits_gave_up: torch.Tensor | None = None  # int32 [1] on the device: not 0 once a kernel waited for a peer in vain

    def share_memory(self, library: ctypes.CDLL, spin: bool) -> None:
        """Continue the TP ranks' collectives over shared memory (a stage never spans hosts), by the C of `library`.
        Collective. `spin`: every rank has a core of its own."""
        if self.tp.size > 1:
            store = dist.PrefixStore(f"shared-memory{self.stage}", self.store)
            self.tp.switch(shm.connect(library, store, self.tp.rank, self.tp.size, timeout_s=self.timeout_s, spin=spin))

    def barrier(self, name: str, timeout_s: float = 600.0) -> None:
        """Wait until every rank of the replica has called this with `name` (it is slow: for start and end)."""
        self._count_in(name, timeout_s, wait=True)

    def part(self, timeout_s: float) -> None:
        """Before the end: nobody leaves while a neighbour waits for something of his, and who serves the store is last.

        Raises MeshError if not everybody came in time.
        """
        self.barrier("part", timeout_s)
        self._count_in("parted", timeout_s, wait=self.rank == 0)

    def _count_in(self, name: str, timeout_s: float, wait: bool) -> None:
        if self.store is None:
            return
        try:
            if self.store.add(f"barrier/{name}", 1) == self.world_size:
                self.store.set(f"barrier/{name}/done", b"1")
            if wait:
                self.store.wait([f"barrier/{name}/done"], timedelta(seconds=timeout_s))
        except RuntimeError as error:
            raise MeshError(f"not every rank reached {name!r} within {timeout_s:.0f} s") from error

    def close(self) -> None:
        self.tp.close()
        if self.link is not None:
            self.link.close()


def single_rank_groups() -> Groups:
    return Groups(tp=Switchable(SingleRank()), link=None)


def connect_groups(
    topology: Topology, rendezvous: Rendezvous, hidden_size: int, dtype: torch.dtype, device: torch.device
) -> Groups:
    """Meet the other ranks. Raises MeshError naming what could not be reached."""
    if topology.world_size == 1:
        return single_rank_groups()
    timeout = timedelta(seconds=rendezvous.timeout_s)
    with _named("the store", rendezvous):
        store = _store(topology, rendezvous, timeout)
    tp: Any = SingleRank()
    if topology.tp_size > 1:
        with _named(f"the tensor-parallel group of stage {topology.stage}", rendezvous):
            group = _process_group(
                dist.PrefixStore(f"tp{topology.stage}", store), topology.tp_rank, topology.tp_size, rendezvous, device
            )
            tp = TorchDistributed(group, topology.tp_rank, topology.tp_size)
    link: PipelineLink | None = None
    if topology.pp_size > 1:
        with _named("the pipeline", rendezvous):
            link = _link(store, topology, rendezvous, hidden_size, dtype, device)
    return Groups(Switchable(tp), link, store, topology.world_size, topology.rank, topology.stage, rendezvous.timeout_s)


def _link(
    store: Any,
    topology: Topology,
    rendezvous: Rendezvous,
    hidden_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> PipelineLink:
    if device.type == "cpu":
        address = _address_facing(rendezvous.host, rendezvous.port)
        return sockets.connect(store, topology, address, rendezvous.ranks_per_node, hidden_size, dtype)
    return torch_link(store, topology, lambda store, rank: _process_group(store, rank, 2, rendezvous, device))


def torch_link(store: Any, topology: Topology, new_group: Callable[[Any, int], Any]) -> TorchLink:
    """Connect to the neighbours, one after the other in an order that is the same everywhere, so that nobody waits in
    a circle. `new_group(store, rank)` joins a group of two, of which rank 0 sends. Collective."""
    hops = [(topology.receives_from, topology.rank), *((topology.rank, target) for target in topology.sends_to)]
    groups = {
        (source, target): new_group(dist.PrefixStore(f"hop{source}-{target}", store), int(topology.rank == target))
        for source, target in sorted(hops)
    }
    return TorchLink(groups.pop(hops[0]), list(groups.values()))


@contextmanager
def _named(what: str, rendezvous: Rendezvous) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError) as error:
        raise MeshError(
            f"could not connect {what} through {rendezvous.host}:{rendezvous.port} within {rendezvous.timeout_s:.0f} s "
            f"({str(error).splitlines()[0]}). Check that the nodes reach each other on all ports"
        ) from error


def _store(topology: Topology, rendezvous: Rendezvous, timeout: timedelta) -> Any:
    options: dict[str, Any] = {}
    if topology.rank == 0 and rendezvous.listen_fd is not None:
        options["master_listen_fd"] = rendezvous.listen_fd
    return dist.TCPStore(
        rendezvous.host, rendezvous.port, None, topology.rank == 0, timeout, wait_for_workers=False, **options
    )


def _process_group(store: Any, rank: int, size: int, rendezvous: Rendezvous, device: torch.device) -> Any:
    timeout = timedelta(seconds=rendezvous.timeout_s)
    if device.type == "cuda":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timeout
        return dist.ProcessGroupNCCL(store, rank, size, options)
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    # Bind to the address that faces the store: the host's name may resolve to an address that no other node reaches.
    # Every pair connects now: gloo's lazy connections block until the other side takes part, and may wait in a circle.
    address = _address_facing(rendezvous.host, rendezvous.port)
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
    options._timeout = timeout
    return dist.ProcessGroupGloo(store, rank, size, options)


def _address_facing(host: str, port: int) -> str:
    """This machine's address on the route to `host` (nothing is sent: a UDP connect only picks the route)."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])
