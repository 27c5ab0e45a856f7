"""What a rank's process says of its GPU before it ends."""

from __future__ import annotations

import socket
from dataclasses import dataclass

import pytest
import torch

from remuda.executor import rank as rank_module
from remuda.executor import supervision
from remuda.executor.inproc import InprocExecutor
from remuda.executor.rank import RankPlace, RankProcess
from remuda.protocol.errors import DeviceOutOfMemory
from remuda.protocol.step import Hello, RankFailed
from remuda.protocol.wire import engine_side_of_rank
from remuda.worker.worker import Worker
from tests.executor.replica import config, prefill


@dataclass
class Connected:
    """An address whose other end is here."""

    sock: socket.socket

    def connect(self, timeout_s: float) -> socket.socket:
        return self.sock


def failure(error: Exception, monkeypatch: pytest.MonkeyPatch) -> RankFailed:
    """What the engine hears of rank 1 when its start raises `error`."""
    engine, rank = socket.socketpair()
    monkeypatch.setattr(rank_module, "setproctitle", lambda title: None)

    class Breaking(RankProcess):
        def _start(self) -> Worker:
            self._enter("memory")
            raise error

    with engine:
        place = RankPlace(1, 0, Connected(rank), rendezvous=None)  # type: ignore[arg-type]
        assert Breaking(config(2, 1), place).run() == 1
        rank.close()
        channel = engine_side_of_rank(engine)
        heard = [channel.receive() for _ in range(3)]
    assert isinstance(heard[0], Hello) and isinstance(heard[2], RankFailed)
    return heard[2]


def test_no_memory_left_is_told_with_its_code_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = failure(
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has ..."), monkeypatch
    )
    assert (failed.rank, failed.phase, failed.code, failed.traceback) == (1, "memory", "gpu_out_of_memory", "")
    error = supervision.cause([supervision.rank_failed(failed), supervision.rank_exited(0, 1, 1)]).as_error()
    assert error.message.startswith("rank 1 on node 0 failed: GPU 1 has no memory left")


def test_a_broken_gpu_is_the_cause_and_its_neighbours_are_echoes(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = failure(torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), monkeypatch)
    echo = failure(torch.distributed.DistBackendError("NCCL error: remote process exited"), monkeypatch)
    assert (broken.code, echo.code) == ("gpu_failed", "peer_lost") and "in _start" in broken.traceback
    seen = [supervision.rank_failed(echo), supervision.rank_failed(broken)]
    assert "illegal memory access" in supervision.cause(seen).text


def test_a_rank_in_this_process_raises_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = InprocExecutor(config())
    executor.start(lambda _: None)

    def launch(self: Worker, step: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Worker, "launch", launch)
    with pytest.raises(DeviceOutOfMemory):
        executor.submit(prefill())
    executor.shutdown()
