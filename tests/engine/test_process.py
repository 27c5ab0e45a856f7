"""The engine as a process: what its client hears, and that it neither spins nor outlives its client or its ranks."""

from __future__ import annotations

import multiprocessing
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from remuda.config.engine import EngineConfig
from remuda.engine.ports import Executor, StartReport
from remuda.engine.process import run_engine
from remuda.protocol.errors import ConfigError, ReplicaDied
from remuda.protocol.progress import PhaseProgress
from remuda.protocol.request import (
    AbortRequest,
    EngineFailed,
    EngineReady,
    EngineStats,
    FinishReason,
    RequestOutput,
    ResetPrefixCache,
    Shutdown,
    StatsRequest,
    StepOutputs,
)
from remuda.protocol.step import StepResult
from remuda.protocol.wire import Channel, WireError, client_side
from tests.engine.fakes import FakeRanks, brute_force, engine_config, request


class BrokenAtStart(FakeRanks):
    def start(self, progress: Callable[[PhaseProgress], None]) -> StartReport:
        raise ConfigError("rank 3 on node 1: weights: model.safetensors is truncated")


class DiesInTheMiddle(FakeRanks):
    def poll(self, block: bool = False) -> list[StepResult]:
        if len(self.plans) > 3:
            raise ReplicaDied("rank 1 was killed by SIGKILL", node=0, rank=1)
        return super().poll()


class Buggy(FakeRanks):
    def poll(self, block: bool = False) -> list[StepResult]:
        if self.plans:
            raise KeyError("surprise")
        return []


class TalksForever(FakeRanks):
    def start(self, progress: Callable[[PhaseProgress], None]) -> StartReport:
        while True:
            progress(PhaseProgress(0, "weights", 1, 2))


class Patient(FakeRanks):
    """Ranks whose descriptor is readable only while a result is due."""

    def __init__(self, config: EngineConfig, pages: int) -> None:
        super().__init__(config, pages)
        os.read(self._pipe[0], 1)

    def submit(self, plan) -> None:  # type: ignore[no-untyped-def]
        super().submit(plan)
        os.write(self._pipe[1], b"!")

    def poll(self, block: bool = False) -> list[StepResult]:
        results = super().poll()
        if results:
            os.read(self._pipe[0], len(results))
        return results


@dataclass
class Engine:
    channel: Channel
    process: multiprocessing.process.BaseProcess

    def until(self, kind: type) -> list[object]:
        """Messages up to the first of `kind`."""
        messages: list[object] = []
        while not messages or not isinstance(messages[-1], kind):
            messages.append(self.channel.receive())
        return messages

    def outputs_of(self, *names: str) -> dict[str, list[RequestOutput]]:
        """Outputs until each of `names` has ended."""
        found: dict[str, list[RequestOutput]] = {name: [] for name in names}
        while not all(outputs and outputs[-1].finish_reason for outputs in found.values()):
            message = self.channel.receive()
            if isinstance(message, StepOutputs):
                for output in message.outputs:
                    found[output.request_id].append(output)
        return found

    def cpu_s(self) -> float:
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def exit_code(self) -> int | None:
        self.process.join(timeout=20)
        return self.process.exitcode


def serve(ours: socket.socket, theirs: socket.socket, config: EngineConfig, make: Callable[[], Executor]) -> None:
    ours.close()
    run_engine(config, make(), theirs)


@contextmanager
def engine(ranks: type[FakeRanks] = FakeRanks, *, immediate: bool = False, **scheduler: object) -> Iterator[Engine]:
    config = engine_config(**scheduler)  # type: ignore[arg-type]

    def make() -> Executor:
        if ranks is Patient:
            return Patient(config, 2000)
        return ranks(config, 2000, rng=random.Random(1), immediate=immediate)

    ours, theirs = socket.socketpair()
    ours.settimeout(30)
    process = multiprocessing.get_context("fork").Process(target=serve, args=(ours, theirs, config, make))
    process.start()
    theirs.close()
    try:
        yield Engine(client_side(ours), process)
    finally:
        ours.close()
        process.join(timeout=20)
        if process.is_alive():
            process.kill()
            raise AssertionError("the engine outlived its client")


@pytest.mark.parametrize("immediate", [False, True])
def test_start_serve_and_stop(immediate: bool) -> None:
    with engine(immediate=immediate) as e:
        start = e.until(EngineReady)
        assert isinstance(start[0], PhaseProgress) and start[0].phase == "weights"
        ready = start[-1]
        assert isinstance(ready, EngineReady)
        assert (ready.max_model_len, ready.kv_pages, ready.block_size) == (256, 2000, 4)
        assert ready.max_concurrency == pytest.approx(1999 / (64 + 3 * 3)) and "rank 0" in ready.report
        requests = [request(f"r{i}", [5 + i] * (i + 1), max_tokens=20) for i in range(12)]
        for req in requests:
            e.channel.send(req)
        outputs = e.outputs_of(*(req.request_id for req in requests))
        for req in requests:
            tokens = [token for output in outputs[req.request_id] for token in output.token_ids]
            assert tokens == brute_force(req, 256)[0]
        e.channel.send(StatsRequest())
        stats = e.until(EngineStats)[-1]
        assert isinstance(stats, EngineStats) and stats.kv_pages_used == stats.running == 0
        e.channel.send(Shutdown())
        assert e.exit_code() == 0


def test_a_bad_request_is_refused_with_its_status_and_the_others_go_on() -> None:
    with engine(max_model_len=64) as e:
        e.until(EngineReady)
        good = request("good", [5, 6])
        for req in (request("long", [5] * 64), good):
            e.channel.send(req)
        outputs = e.outputs_of("long", "good")
        refusal = outputs["long"][0]
        assert refusal.finish_reason is FinishReason.ERROR and refusal.error is not None
        assert refusal.error.http_status == 400 and "64" in refusal.error.message
        assert (refusal.error.param, refusal.error.code) == ("prompt", "context_length_exceeded")
        assert [t for output in outputs["good"] for t in output.token_ids] == brute_force(good, 64)[0]


def test_beyond_the_bounded_queue_requests_are_refused_with_429() -> None:
    with engine(Patient, max_num_seqs=1, max_waiting=1) as e:
        e.until(EngineReady)
        batch = [e.channel.encode(request(f"r{i}", [5, 6], max_tokens=200, ignore_eos=True)) for i in range(8)]
        e.channel.sock.sendall(b"".join(batch))
        outputs = e.outputs_of(*(f"r{i}" for i in range(8)))
        reasons = [outputs[f"r{i}"][-1].error for i in range(8)]
        assert [reason and (reason.http_status, reason.code) for reason in reasons].count((429, "queue_full")) == 6
        assert reasons.count(None) == 2


def test_abort_and_cache_reset() -> None:
    with engine(Patient) as e:
        e.until(EngineReady)
        e.channel.send(request("a", [5] * 20, max_tokens=None, ignore_eos=True))
        e.until(StepOutputs)
        e.channel.send(AbortRequest(["a"]))
        e.channel.send(ResetPrefixCache())
        e.channel.send(request("b", [5] * 20, max_tokens=1))
        while not isinstance(message := e.channel.receive(), StepOutputs) or message.outputs[0].request_id != "b":
            pass
        assert message.outputs[0].cached_tokens == 0
        e.channel.send(StatsRequest())
        stats = e.until(EngineStats)[-1]
        assert isinstance(stats, EngineStats) and stats.kv_pages_used == 0


def test_a_failed_start_is_told_and_exits_with_1() -> None:
    with engine(BrokenAtStart) as e:
        failed = e.channel.receive()
        assert isinstance(failed, EngineFailed) and "truncated" in failed.message
        assert e.exit_code() == 1


def test_a_dead_rank_ends_the_engine_and_the_client_hears_which() -> None:
    with engine(DiesInTheMiddle) as e:
        e.until(EngineReady)
        e.channel.send(request("a", [5] * 20, max_tokens=None, ignore_eos=True))
        failed = e.until(EngineFailed)[-1]
        assert isinstance(failed, EngineFailed)
        assert (failed.node, failed.rank) == (0, 1) and "SIGKILL" in failed.message
        assert e.exit_code() == 1


def test_a_bug_ends_the_engine_with_a_message_instead_of_silence(capfd: pytest.CaptureFixture[str]) -> None:
    with engine(Buggy) as e:
        e.until(EngineReady)
        e.channel.send(request("a", [5] * 20))
        failed = e.until(EngineFailed)[-1]
        assert isinstance(failed, EngineFailed) and "KeyError" in failed.message
        assert e.exit_code() == 1
    assert "surprise" in capfd.readouterr().err


@pytest.mark.parametrize("ranks", [FakeRanks, TalksForever])
def test_when_the_client_is_gone_the_engine_ends(ranks: type[FakeRanks]) -> None:
    with engine(ranks) as e:
        e.channel.receive()
        if ranks is FakeRanks:
            e.until(EngineReady)
            e.channel.send(request("a", [5] * 20, max_tokens=None, ignore_eos=True))
        e.channel.close()
        assert e.exit_code() == 0


def test_bytes_that_are_no_message_end_the_engine() -> None:
    with engine() as e:
        e.until(EngineReady)
        e.channel.sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(WireError):
            e.until(StepOutputs)
        assert e.exit_code() == 0


def test_an_idle_engine_uses_no_processor_time() -> None:
    with engine(Patient) as e:
        e.until(EngineReady)
        e.channel.send(request("a", [5] * 20))
        e.outputs_of("a")
        e.channel.send(StatsRequest())
        e.until(EngineStats)
        before = e.cpu_s()
        time.sleep(0.3)
        assert e.cpu_s() - before <= 0.02
