"""gloo groups and pipeline links between real processes."""

from __future__ import annotations

import multiprocessing
import socket
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from remuda.config.engine import ParallelConfig
from remuda.parallel.collectives import SingleRank
from remuda.parallel.groups import Groups, MeshError, Rendezvous, connect_groups, torch_link
from remuda.parallel.topology import Topology, topology_of
from remuda.protocol.errors import PeerLost

CPU = torch.device("cpu")


def in_processes(tp: int, pp: int, body: Callable[[Groups, Topology], Any], ranks_per_node: int = 64) -> list[Any]:
    """Run `body` on every rank of the layout, each a fork of this process; its results in rank order."""
    parallel = ParallelConfig(tp, pp, layer_partition=(1,) * pp)
    context = multiprocessing.get_context("fork")
    with socket.create_server(("127.0.0.1", 0)) as store:
        results: Any = context.Queue()

        def rank(number: int) -> None:
            torch.set_num_threads(1)
            try:
                topology = topology_of(number, parallel)
                fd = store.fileno() if number == 0 else None
                meet = Rendezvous("127.0.0.1", store.getsockname()[1], 20.0, fd, ranks_per_node)
                groups = connect_groups(topology, meet, 3, torch.float32, CPU)
                result = body(groups, topology)
                groups.part(20)
                results.put((number, result, ""))
            except BaseException:
                results.put((number, None, traceback.format_exc()))

        processes = [context.Process(target=rank, args=(number,), daemon=True) for number in range(tp * pp)]
        for process in processes:
            process.start()
        found = [results.get(timeout=60) for _ in processes]
        for process in processes:
            process.join(20)
    errors = [error for _, _, error in found if error]
    assert not errors, errors[0]
    return [result for _, result, _ in sorted(found, key=lambda entry: entry[0])]


def collectives(groups: Groups, topology: Topology) -> list[Any]:
    tp, rank = groups.tp, topology.tp_rank
    gathered = tp.gather(torch.full((2, 2), rank))
    groups.tp.barrier()
    return [
        tp.all_reduce_(torch.full((3,), rank + 1.0, dtype=torch.bfloat16)).tolist(),
        tp.all_gather(torch.tensor([[rank], [7]], dtype=torch.int32)).tolist(),
        None if gathered is None else gathered.tolist(),
        tp.broadcast_(torch.tensor([rank + 5])).tolist(),
    ]


def test_collectives_of_two_ranks() -> None:
    first, second = in_processes(2, 1, collectives)
    assert first[0] == second[0] == [3.0] * 3
    assert first[1] == second[1] == [[[0], [7]], [[1], [7]]]
    assert first[2] == [[[0, 0], [0, 0]], [[1, 1], [1, 1]]] and second[2] is None
    assert first[3] == second[3] == [5]


def pipeline(groups: Groups, topology: Topology) -> list[Any]:
    """Three micro-batches of different sizes, all posted before the first is sent, then their tokens back."""
    link: Any = groups.link
    sizes, found = [4, 1, 1000], []
    if topology.is_first_stage:
        for step in range(3):
            link.post_tokens(step + 1, step)
        for step, size in enumerate(sizes):
            link.send_hidden(link.wrap(torch.full((size, 3), 10.0 * step + topology.tp_rank)), step)
        return [link.receive_tokens(step).tolist() for step in range(3)]
    for step, size in enumerate(sizes):
        link.post_hidden(size, step)
    for step, size in enumerate(sizes):
        x_TH = link.receive_hidden(step)
        assert x_TH.shape == (size, 3)
        found.append(float(x_TH.mean()))
        if topology.is_last_stage and topology.is_driver:
            link.send_tokens(np.arange(step + 1), step)
        if not topology.is_last_stage:
            link.send_hidden(link.wrap(x_TH + 1), step)
    groups.barrier("sent", 20)
    return found


def first_stage_meets(groups: Groups, topology: Topology) -> list[Any]:
    found = pipeline(groups, topology)
    if topology.is_first_stage:
        groups.barrier("sent", 20)
    return found


@pytest.mark.parametrize(("tp", "pp"), [(1, 2), (2, 2), (1, 3)])
def test_hidden_states_go_forward_and_tokens_back(tp: int, pp: int) -> None:
    results = in_processes(tp, pp, first_stage_meets)
    for rank, found in enumerate(results):
        stage, tp_rank = divmod(rank, tp)
        if stage == 0:
            assert found == [[0], [0, 1], [0, 1, 2]]
        else:
            assert found == [10.0 * step + tp_rank + stage - 1 for step in range(3)]


def over_a_device_link(groups: Groups, topology: Topology) -> list[Any]:
    """The same among devices: into tensors that are already there, and which are written again once they are sent."""

    def new_group(store: Any, rank: int) -> Any:
        return dist.ProcessGroupGloo(store, rank, 2, timedelta(seconds=20))

    link = torch_link(groups.store, topology, new_group)
    found = []
    x_TH, tokens_S = torch.empty(1000, 3), torch.empty(3, dtype=torch.int64)
    for step, size in enumerate([4, 1, 1000]):
        if topology.is_first_stage:
            link.send_hidden(x_TH[:size].fill_(10.0 * step + topology.tp_rank), step)
            continue
        link.receive_hidden_(x_TH[:size], step)
        found.append(float(x_TH[:size].mean()))
        if topology.is_driver:
            link.send_tokens(tokens_S[: step + 1].copy_(torch.arange(step + 1)), step)
        elif not topology.is_last_stage:
            link.send_hidden(x_TH[:size].add_(1), step)
    if topology.is_first_stage:
        for step in range(3):
            link.receive_tokens_(tokens_S[: step + 1], step)
            found.append(tokens_S[: step + 1].tolist())
    groups.barrier("sent", 20)
    return found


@pytest.mark.parametrize(("tp", "pp"), [(1, 2), (2, 3)])
def test_a_device_link_does_the_same(tp: int, pp: int) -> None:
    for rank, found in enumerate(in_processes(tp, pp, over_a_device_link)):
        stage, tp_rank = divmod(rank, tp)
        if stage == 0:
            assert found == [[0], [0, 1], [0, 1, 2]]
        else:
            assert found == [10.0 * step + tp_rank + stage - 1 for step in range(3)]


def far_ahead(groups: Groups, topology: Topology) -> list[Any]:
    """Far more than the sockets hold, sent before the other side reads anything."""
    link: Any = groups.link
    steps, size = 20, 50_000
    if topology.is_first_stage:
        for step in range(steps):
            link.send_hidden(link.wrap(torch.full((size, 3), float(step))), step)
        groups.barrier("all sent", 20)
        groups.barrier("all read", 20)
        return []
    groups.barrier("all sent", 20)
    found = []
    for step in range(steps):
        link.post_hidden(size, step)
        x_TH = link.receive_hidden(step)
        found.append((float(x_TH.min()), float(x_TH.max())))
    groups.barrier("all read", 20)
    return found


@pytest.mark.parametrize("ranks_per_node", [1, 2], ids=["tcp", "unix"])
def test_sends_never_wait_for_the_receiver(ranks_per_node: int) -> None:
    _, found = in_processes(1, 2, far_ahead, ranks_per_node)
    assert found == [(float(step), float(step)) for step in range(20)]


def neighbour_leaves(groups: Groups, topology: Topology) -> list[Any]:
    link: Any = groups.link
    if topology.is_first_stage:
        link.close()
    else:
        link.post_hidden(1, 0)
        with pytest.raises(PeerLost, match="connection closed by peer"):
            link.receive_hidden(0)
    return []


def test_a_neighbour_that_is_gone_is_an_error() -> None:
    in_processes(1, 2, neighbour_leaves)


def test_a_missing_rank_is_named_in_time() -> None:
    store = socket.create_server(("127.0.0.1", 0))
    port = store.getsockname()[1]
    meet = Rendezvous("127.0.0.1", port, 1.0, store.detach())  # the key-value store takes the descriptor over
    topology = topology_of(0, ParallelConfig(2, 1, layer_partition=(1,)))
    with pytest.raises(MeshError, match=r"tensor-parallel group of stage 0.*within 1 s"):
        connect_groups(topology, meet, 3, torch.float32, CPU)


def test_one_rank_needs_nobody() -> None:
    comm, x = SingleRank(), torch.ones(2)
    assert comm.all_reduce_(x) is x and comm.broadcast_(x) is x
    assert comm.all_gather(x).shape == (1, 2)
