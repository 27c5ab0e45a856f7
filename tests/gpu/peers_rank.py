"""One rank of `test_peers.py`: STORE RANKS RANK ROUNDS. Prints a digest of every bit that it got.

The host only launches: what is right is counted on the device, so that ranks drift apart as far as they will. Delays
are kernels that spin. K inputs of every rank, T tokens, H hidden size.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist

from remuda.kernels.head.torch import greedy_keys, of_greedy_keys
from remuda.parallel.collectives import SingleRank
from remuda.parallel.peers.communicator import Limits, PeerCommunicator
from remuda.parallel.peers.link import PeerLink
from remuda.parallel.peers.memory import CudaPeerMemory, meet
from remuda.parallel.topology import Topology

HIDDEN, ROWS, KEYS, EPS = 5120, 256, 300, 1e-5
HOP_ROWS = 300
INPUTS = 4  # of every rank, made before the clock starts
GRAPHS = ((1, 3), (8, 2), (33, 4), (256, 1), (1, 40))  # (rows, all-reduces one after another) of each
DELAY_CYCLES = 300_000  # at most: about 0.2 ms


class Rounds:
    """Collectives of random sizes, some from graphs. `common` makes the same choices on every rank, `own` its own."""

    def __init__(self, comm: PeerCommunicator, dtype: torch.dtype, device: torch.device) -> None:
        self.common, self.own = random.Random(7), random.Random(1000 + comm.rank)
        self.comm, self.dtype, self.device = comm, dtype, device
        self.digest = torch.zeros((), dtype=torch.int64, device=device)
        self.wrong = torch.zeros((), dtype=torch.int64, device=device)
        generator = torch.Generator(device).manual_seed(3)
        shape = (INPUTS, comm.size, ROWS, HIDDEN)
        self.inputs_KRTH = torch.randn(shape, generator=generator, device=device).to(dtype)
        self.inputs_KRTH[:, :, :, :3] = torch.tensor([-0.0, 0.0, -0.0])  # the sentinel itself may be sent
        self.residual_TH = torch.randn(ROWS, HIDDEN, generator=generator, device=device).to(dtype)
        self.weight_H = torch.randn(HIDDEN, generator=generator, device=device).to(dtype)
        self.weights = torch.arange(1, ROWS * HIDDEN + 1, device=device)  # of the digest
        self.graphs = [self._capture(rows, count) for rows, count in GRAPHS]

    def run(self, count: int) -> None:
        kinds = (self.norm, self.add, self.plain, self.keys, self.graph)
        for _ in range(count):
            if self.own.random() < 0.2:
                torch.cuda._sleep(self.own.randrange(DELAY_CYCLES))
            self.common.choice(kinds)()

    def _size(self) -> int:
        return self.common.choice((1, 1, 2, 7, self.common.randint(1, ROWS)))

    def _mine(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(this rank's input, the sum over ranks in float32)."""
        all_RTH = self.inputs_KRTH[self.common.randrange(INPUTS), :, :rows]
        return all_RTH[self.comm.rank].clone(), self._sum(torch.zeros(rows, HIDDEN, device=self.device), all_RTH)

    @staticmethod
    def _sum(start_TH: torch.Tensor, all_RTH: torch.Tensor) -> torch.Tensor:
        total_TH = start_TH.float()
        for x_TH in all_RTH:
            total_TH = total_TH + x_TH.float()
        return total_TH

    def _take(self, got: torch.Tensor, expected: torch.Tensor | None) -> None:
        """Into the digest, and compared: bfloat16 to its last bit."""
        bits = got.contiguous().view(torch.int64 if got.dtype is torch.int64 else torch.int32).flatten().long()
        self.digest.mul_(1_000_003).add_((bits * self.weights[: len(bits)]).sum())
        if expected is not None:
            tolerance = {"rtol": 8e-3, "atol": 1e-6} if self.dtype is torch.bfloat16 else {"rtol": 1e-6, "atol": 1e-6}
            self.wrong.add_((~torch.isclose(got.float(), expected.float(), **tolerance)).sum())

    def norm(self) -> None:
        rows = self._size()
        mine_TH, sum_TH = self._mine(rows)
        residual_TH = self.residual_TH[:rows].clone()
        expected_TH = (sum_TH + residual_TH.float()).to(self.dtype)
        y_TH, got_TH = self.comm.all_reduce_add_norm(mine_TH, residual_TH, self.weight_H, EPS, refuse)
        self._take(got_TH, expected_TH)
        wanted_TH = torch.rms_norm(got_TH.float(), (HIDDEN,), self.weight_H.float(), EPS)
        self.wrong.add_((~torch.isclose(y_TH.float(), wanted_TH, rtol=2e-2, atol=2e-2)).sum())
        self._take(y_TH, None)

    def add(self) -> None:
        rows = self._size()
        mine_TH, sum_TH = self._mine(rows)
        residual_TH = self.residual_TH[:rows].clone()
        expected_TH = (sum_TH + residual_TH.float()).to(self.dtype)
        self._take(self.comm.all_reduce_add(mine_TH, residual_TH), expected_TH)

    def plain(self) -> None:
        mine_TH, sum_TH = self._mine(self._size())
        self._take(self.comm.all_reduce_(mine_TH), sum_TH.to(self.dtype))

    def keys(self) -> None:
        rows = self.common.randint(1, KEYS)
        value_RS = self.inputs_KRTH[self.common.randrange(INPUTS), :, 0, 5 : 5 + rows].float()
        ids_S = torch.arange(rows, device=self.device)
        keys_S = self.comm.greatest_keys_(greedy_keys(value_RS[self.comm.rank], ids_S + 1000 * self.comm.rank))
        best_S, id_S = of_greedy_keys(keys_S)
        self.wrong.add_((best_S != value_RS.amax(0)).sum() + (id_S != value_RS.argmax(0) * 1000 + ids_S).sum())
        self._take(keys_S, None)

    def graph(self) -> None:
        graph, given_TH, residual_TH, out_TH = self.common.choice(self.graphs)
        which = self.common.randrange(INPUTS)
        given_TH.copy_(self.inputs_KRTH[which, self.comm.rank, : len(given_TH)])
        residual_TH.copy_(self.residual_TH[: len(given_TH)])
        graph.replay()
        self._take(out_TH, None)

    def _capture(self, rows: int, count: int) -> tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor, torch.Tensor]:
        """A chain of `count` reductions, each of what the one before it gave: (graph, input, residual, output)."""
        given_TH, residual_TH = self.inputs_KRTH[0, self.comm.rank, :rows].clone(), self.residual_TH[:rows].clone()

        def chain() -> torch.Tensor:
            x_TH, all_TH = given_TH.clone(), residual_TH.clone()
            for _ in range(count):
                x_TH, all_TH = self.comm.all_reduce_add_norm(x_TH, all_TH, self.weight_H, EPS, refuse)
            return self.comm.all_reduce_add(x_TH, all_TH)

        chain()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            out_TH = chain()
        return graph, given_TH, residual_TH, out_TH


def hops(link: PeerLink, topology: Topology, steps: int, ahead: int, device: torch.device) -> torch.Tensor:
    """Rows go forward through the stages and tokens come back, `ahead` steps later. How many numbers were wrong."""
    common, own = random.Random(11), random.Random(topology.rank)
    wrong = torch.zeros((), dtype=torch.int64, device=device)
    due: list[tuple[int, int]] = []
    for step in range(steps):
        rows = common.choice((1, 2, 7, 128, common.randint(1, HOP_ROWS)))
        if own.random() < 0.2:
            torch.cuda._sleep(own.randrange(DELAY_CYCLES))
        x_TH = torch.full((rows, HIDDEN), float(step % 200), dtype=torch.bfloat16, device=device)
        if not topology.is_first_stage:
            link.receive_hidden_(x_TH.fill_(-1.0), step)
            wrong.add_((x_TH != float(step % 200)).sum())
        if topology.is_last_stage:
            link.send_tokens(torch.arange(rows, device=device) + step, step)
        else:
            link.send_hidden(x_TH, step)
        due.append((step, rows))
        if topology.is_first_stage and len(due) == ahead:
            wrong.add_(_returned(link, *due.pop(0), device))
    while topology.is_first_stage and due:
        wrong.add_(_returned(link, *due.pop(0), device))
    return wrong


def _returned(link: PeerLink, step: int, rows: int, device: torch.device) -> torch.Tensor:
    tokens_S = torch.zeros(rows, dtype=torch.int64, device=device)
    link.receive_tokens_(tokens_S, step)
    return (tokens_S != torch.arange(rows, device=device) + step).sum()


def refuse(*_: object) -> tuple[torch.Tensor, torch.Tensor]:
    raise AssertionError("few rows must not take the way of many")


def connect(store: Callable[[str], object], name: str, rank: int, size: int, device: torch.device) -> CudaPeerMemory:
    return CudaPeerMemory(f"test-{name}", store(name), rank, size, device)


def main() -> None:
    path, size, rank, rounds = sys.argv[1], *(int(text) for text in sys.argv[2:5])
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    store = dist.FileStore(path, size)
    named = lambda name: dist.PrefixStore(name, store)  # noqa: E731
    error = torch.zeros(1, dtype=torch.int32, device=device)
    digests = []
    for dtype in (torch.bfloat16, torch.float32):
        memory = connect(named, f"{dtype}", rank, size, device)
        limits = Limits(push_rows=ROWS, key_rows=KEYS)
        every = Rounds(PeerCommunicator(memory, SingleRank(), HIDDEN, dtype, error, limits), dtype, device)
        every.run(rounds // 2)
        digests.append(int(every.digest))
        assert not int(every.wrong), f"{int(every.wrong)} wrong numbers in {dtype}"
    topology = Topology(1, size, 0, rank, 0, 1, 1)  # every rank is a stage
    link = PeerLink(
        connect(named, "link", rank, size, device), topology, error,
        slots=size + 2, max_hidden_bytes=HOP_ROWS * HIDDEN * 2, max_rows=HOP_ROWS,
    )  # fmt: skip
    wrong = int(hops(link, topology, rounds // 5, size + 1, device))
    assert not wrong, f"{wrong} wrong numbers between stages"
    torch.cuda.synchronize()
    assert not error.item(), "a wait gave up"
    meet(store, "end", size)
    print(digests)


if __name__ == "__main__":
    main()
