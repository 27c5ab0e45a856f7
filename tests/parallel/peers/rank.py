"""One rank of `test_protocol.py`: STORE RANKS RANK. Checks every round against torch, prints a digest of all bits."""

from __future__ import annotations

import hashlib
import os
import random
import sys
import time

import torch
import torch.distributed as dist
from triton.runtime import interpreter

from remuda.kernels.head.torch import greedy_keys, of_greedy_keys
from remuda.parallel.collectives import SingleRank
from remuda.parallel.peers.communicator import Limits, PeerCommunicator
from remuda.parallel.peers.link import PeerLink
from remuda.parallel.peers.memory import meet
from remuda.parallel.topology import Topology
from tests.parallel.peers.shared_files import SharedFileMemory

HIDDEN, ROWS, ROUNDS, EPS = 48, 4, 12, 1e-5


def inputs(round_: int, rank: int, rows: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * round_ + rank)
    x_TH = torch.randn(rows, HIDDEN, generator=generator).to(dtype)
    x_TH[0, :3] = torch.tensor([-0.0, 0.0, -0.0])  # the sentinel itself may be sent
    return x_TH


def rounds(comm: PeerCommunicator, dtype: torch.dtype, digest: hashlib._Hash) -> None:
    common = random.Random(7)  # the same choices on every rank
    own = random.Random(comm.rank)
    for round_ in range(ROUNDS):
        rows, operation = common.randint(1, ROWS), common.choice(["norm", "add", "plain", "keys"])
        everyone = [inputs(round_, rank, rows, dtype) for rank in range(comm.size)]
        residual_TH = inputs(round_, 99, rows, dtype)
        weight_H = inputs(round_, 98, 1, dtype)[0]
        mine_TH = everyone[comm.rank].clone()
        time.sleep(own.random() * 2e-3)
        if operation == "keys":
            value_S = torch.stack([x_TH[:, 5].float() for x_TH in everyone])
            keys_S = comm.greatest_keys_(greedy_keys(value_S[comm.rank], torch.arange(rows) + 100 * comm.rank))
            best_S, id_S = of_greedy_keys(keys_S)
            assert torch.equal(best_S, value_S.amax(0)), (round_, value_S, best_S, id_S)
            assert torch.equal(id_S, value_S.argmax(0) * 100 + torch.arange(rows))
            digest.update(keys_S.numpy().tobytes())
            continue
        total_TH = residual_TH.float() if operation != "plain" else torch.zeros(rows, HIDDEN)
        for x_TH in everyone:
            total_TH = total_TH + x_TH.float()
        expected_TH = total_TH.to(dtype)
        if operation == "norm":
            y_TH, got_TH = comm.all_reduce_add_norm(mine_TH, residual_TH.clone(), weight_H, EPS, refuse)
            wanted_TH = torch.rms_norm(expected_TH.float(), (HIDDEN,), weight_H.float(), EPS)
            close = {"rtol": 3e-2, "atol": 3e-2} if dtype is torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
            torch.testing.assert_close(y_TH.float(), wanted_TH, **close)
            digest.update(y_TH.view(torch.uint8).numpy().tobytes())
        elif operation == "add":
            got_TH = comm.all_reduce_add(mine_TH, residual_TH.clone())
        else:
            got_TH = comm.all_reduce_(mine_TH)
        # The interpreter rounds bfloat16 towards zero, so only float32 can be compared to the bit.
        close = {"rtol": 1e-2, "atol": 1e-2} if dtype is torch.bfloat16 else {"rtol": 0.0, "atol": 0.0}
        torch.testing.assert_close(got_TH, expected_TH, **close, msg=f"round {round_}, {operation}")
        digest.update(got_TH.view(torch.uint8).numpy().tobytes())


def hops(memory: SharedFileMemory, error: torch.Tensor) -> None:
    """Every rank is a stage: rows go forward, tokens come back, as many in flight as there are slots."""
    size, rank, slots, own = memory.size, memory.rank, 3, random.Random(memory.rank)
    topology = Topology(1, size, 0, rank, 0, 1, 1)
    link = PeerLink(memory, topology, error, slots=slots, max_hidden_bytes=300 * 64 * 2, max_rows=8)
    in_flight: list[int] = []
    for step in range(16):
        rows = random.Random(step).choice([1, 2, 7, 300])  # 300 rows of 64 are put by several programs
        expected_TH = torch.full((rows, 64), float(step), dtype=torch.bfloat16)
        got_TH = expected_TH.clone()
        if rank:
            link.receive_hidden_(got_TH.fill_(-1.0), step)
        torch.testing.assert_close(got_TH, expected_TH)
        time.sleep(own.random() * 1e-3)
        if not topology.is_last_stage:
            link.send_hidden(got_TH, step)
        else:
            link.send_tokens(torch.arange(step % 8 + 1) + step, step)
        in_flight.append(step)
        while rank == 0 and len(in_flight) >= slots:
            oldest = in_flight.pop(0)
            tokens_S = torch.zeros(oldest % 8 + 1, dtype=torch.int64)
            link.receive_tokens_(tokens_S, oldest)
            assert tokens_S.tolist() == [oldest + i for i in range(oldest % 8 + 1)]


def refuse(*_: object) -> tuple[torch.Tensor, torch.Tensor]:
    raise AssertionError("few rows must not take the way of many")


def yield_at_every_load() -> None:
    """A GPU spins beside the others; here ranks that spin must leave the processor to those that have yet to send."""
    load = interpreter.InterpreterBuilder.create_masked_load

    def create_masked_load(*arguments: object) -> object:
        os.sched_yield()
        return load(*arguments)

    interpreter.InterpreterBuilder.create_masked_load = create_masked_load


def main() -> None:
    yield_at_every_load()
    path, size, rank = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    store = dist.FileStore(path, size)
    digest = hashlib.sha256()
    error = torch.zeros(1, dtype=torch.int32)
    for dtype in (torch.bfloat16, torch.float32):
        name = f"{path.replace('/', '_')}-{dtype}"
        memory = SharedFileMemory(name, dist.PrefixStore(str(dtype), store), rank, size)
        fallback = SingleRank()
        limits = Limits(push_rows=ROWS, key_rows=8, looks=1 << 22)
        rounds(PeerCommunicator(memory, fallback, HIDDEN, dtype, error, limits), dtype, digest)
    link_memory = SharedFileMemory(f"{path.replace('/', '_')}-link", dist.PrefixStore("link", store), rank, size)
    hops(link_memory, error)
    assert not error.item()
    meet(store, "end", size)
    print(digest.hexdigest())


if __name__ == "__main__":
    main()
