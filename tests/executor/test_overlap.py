"""A device that computes beside its host has its next step before the host waits for the last, in a rank's own process
and in the engine's."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from remuda.config.engine import EngineConfig
from remuda.engine.core import EngineCore
from remuda.executor.address import Address
from remuda.executor.inproc import InprocExecutor
from remuda.executor.rank import RankPlace, RankProcess
from remuda.parallel.groups import Rendezvous, single_rank_groups
from remuda.parallel.topology import topology_of
from remuda.protocol.request import EngineRequest
from remuda.protocol.sampling import SamplingParams
from remuda.protocol.step import AdoptNative, NewSequence, StepPlan, StepResult, StopRank
from remuda.protocol.wire import Channel, engine_side_of_rank, rank_side
from remuda.worker import worker as worker_module
from remuda.worker.worker import Worker
from tests.executor.replica import decode
from tests.worker.fakes import brute_force_logits, engine_config, model_config
from tests.worker.runners import OnDevice

CONFIG: EngineConfig = engine_config(model_config("CF"))


class Watched(OnDevice):
    """Notes how many steps are launched and not finished when the host begins to wait. Looks done in the end."""

    waits: list[int] = []
    adopted_with: list[int] = []
    worker: Worker
    looks = 0

    def launch(self, run: Any) -> None:
        super().launch(run)
        self.looks = 0

    def patience_s(self, run: Any) -> float:
        self.looks += 1
        return super().patience_s(run) if self.looks < 30 else 0.0

    def finish(self, run: Any) -> StepResult | None:
        self.waits.append(len(self.worker.launched))
        return super().finish(run)

    def adopt_native(self) -> None:
        self.adopted_with.append(len(self.waits))


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    Watched.waits, Watched.adopted_with = [], []
    monkeypatch.setattr(worker_module, "make_runner", Watched)
    original = Worker.allocate

    def allocate(self: Worker, pages: int) -> None:
        self.runner.worker = self  # type: ignore[attr-defined]
        original(self, pages)

    monkeypatch.setattr(Worker, "allocate", allocate)


def prefill() -> StepPlan:
    """Three tokens, in pages for twelve."""
    sampling = SamplingParams(temperature=0.0)
    return StepPlan(0, [0], [3], new=[NewSequence(0, [5, 6, 7], 3, 0, [[1, 2, 3], [4, 5, 6]], sampling)])


def greedy(tokens: list[int], count: int) -> list[int]:
    tokens = list(tokens)
    for _ in range(count):
        tokens.append(int(brute_force_logits(CONFIG.model, tokens)[-1].argmax()))
    return tokens[-count:]


def test_in_process_two_plans_are_in_flight_and_polls_find_them_in_order() -> None:
    executor = InprocExecutor(CONFIG)
    report = executor.start(lambda _: None)
    assert report.plans_in_flight == 2 and executor.filenos() == []
    executor.submit(prefill())
    executor.submit(decode(1))
    assert executor.poll() == []  # nobody has waited for the device yet
    (first,) = executor.poll(block=True)
    executor.submit(decode(2))
    (second,) = executor.poll(block=True)
    (third,) = executor.poll(block=True)
    assert [r.step for r in (first, second, third)] == [0, 1, 2]
    assert first.tokens + second.tokens + third.tokens == greedy([5, 6, 7], 3)
    executor.shutdown()


def test_an_engine_over_it_plans_ahead_and_answers_right() -> None:
    executor = InprocExecutor(CONFIG)
    core = EngineCore(CONFIG, executor, executor.start(lambda _: None))
    prompts = {f"r{i}": [5 + i, 6, 7][: 1 + i % 3] for i in range(5)}
    for name, prompt in prompts.items():
        core.add(EngineRequest(name, prompt, SamplingParams(temperature=0.0, max_tokens=8), 0.0))
    found: dict[str, list[int]] = {name: [] for name in prompts}
    while core.has_work:
        step = core.step(block=True)
        for output in step.outputs if step else ():
            found[output.request_id] += output.token_ids
    assert found == {name: greedy(prompt, 8) for name, prompt in prompts.items()}
    assert Watched.waits.count(2) > 6
    executor.shutdown()


@pytest.fixture
def engine_end() -> Iterator[Channel]:
    """A rank that serves plans in a thread; the engine's end of its channel."""
    ours, theirs = socket.socketpair()
    rank = RankProcess(CONFIG, RankPlace(0, 0, Address("unix:nowhere"), Rendezvous("nowhere", 0)))
    rank._channel = rank_side(theirs)
    worker = Worker(CONFIG, topology_of(0, CONFIG.parallel), single_rank_groups())
    worker.load()
    worker.allocate(100)
    thread = threading.Thread(target=rank._serve, args=(worker,), daemon=True)
    thread.start()
    channel = engine_side_of_rank(ours)
    yield channel
    channel.send(StopRank())
    thread.join(20)
    assert not thread.is_alive(), "the rank does not stop"
    for sock in (ours, theirs):
        sock.close()


def test_a_rank_launches_what_has_come_before_it_waits(engine_end: Channel) -> None:
    plans = [prefill(), *(decode(step) for step in range(1, 8)), StepPlan(8, [], [], released=[0])]
    engine_end.sock.sendall(b"".join(engine_end.encode(plan) for plan in plans))
    results = [engine_end.receive() for _ in plans]
    assert [result.step for result in results] == list(range(9))
    assert [token for result in results for token in result.tokens] == greedy([5, 6, 7], 8)
    assert Watched.waits == [2] * 7 + [1]


def test_the_kernels_change_between_two_steps_when_none_is_in_flight(engine_end: Channel) -> None:
    messages = [prefill(), decode(1), AdoptNative(), decode(2), decode(3)]
    engine_end.sock.sendall(b"".join(engine_end.encode(message) for message in messages))
    results = [engine_end.receive() for _ in range(4)]
    assert [token for result in results for token in result.tokens] == greedy([5, 6, 7], 4)
    assert Watched.adopted_with == [2]
