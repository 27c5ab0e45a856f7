"""A replica's life, with engines that speak the real protocol but compute nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from remuda.config.engine import EngineConfig, SchedulerConfig
from remuda.engine.client import AsyncEngine
from remuda.engine.generation import Generation
from remuda.engine.input import InputProcessor
from remuda.engine.output import OutputProcessor
from remuda.launch.replica import Replica
from remuda.metrics.serving import ServingMetrics
from remuda.protocol.errors import ReplicaDied
from remuda.protocol.progress import PhaseProgress
from remuda.protocol.request import EngineFailed
from remuda.protocol.sampling import SamplingParams
from tests.server.fake_engine import FakeEngine
from tests.text import tiny

TOKENIZER = tiny.tokenizer()
CONFIG = EngineConfig(tiny.model_config(Path()), scheduler=SchedulerConfig(max_model_len=256))
INPUT_PROCESSOR = InputProcessor(CONFIG.model, TOKENIZER, 256)


class Engines:
    """What a replica spawns, one after the other."""

    def __init__(self, say_ready: bool = True) -> None:
        self.spawned: list[FakeEngine] = []
        self._say_ready = say_ready

    def spawn(self, config: EngineConfig) -> FakeEngine:
        fake = FakeEngine()
        fake.say_ready = self._say_ready
        fake.start()
        self.spawned.append(fake)
        return fake


def run(body: Callable[[Replica, AsyncEngine, Engines], Awaitable[None]], engines: Engines | None = None) -> None:
    async def main(engines: Engines) -> None:
        replica = Replica(CONFIG, engines.spawn)
        try:
            await asyncio.wait_for(
                body(replica, AsyncEngine(CONFIG.scheduler, ServingMetrics(256)), engines), timeout=20
            )
        finally:
            await replica.stop()
        assert not any(fake.is_alive() for fake in engines.spawned)

    asyncio.run(main(engines or Engines()))


def ask(engine: AsyncEngine) -> Generation:
    requests = INPUT_PROCESSOR.requests("r", TOKENIZER.encode("abc"), SamplingParams(max_tokens=3))
    return engine.submit(requests, [OutputProcessor(TOKENIZER, requests[0].sampling)], stream=False)


async def answer(engine: AsyncEngine) -> str:
    generation = ask(engine)
    await generation.completed()
    return generation.processors[0].text()


@pytest.mark.parametrize("end", ["stop", "death"])
def test_it_lives_again_behind_the_same_client(end: str) -> None:
    async def body(replica: Replica, engine: AsyncEngine, engines: Engines) -> None:
        await replica.start(engine)
        assert await answer(engine) == "abc"
        if end == "death":
            engines.spawned[0].die("rank 3 died")
            assert (await replica.wait_died()).rank == 3
            await replica.stop()
            waiting = asyncio.create_task(answer(engine))
        else:
            await replica.stop()
            with pytest.raises(ReplicaDied):
                ask(engine)
            waiting = None
        await replica.start(engine)
        assert waiting is None or await waiting == "abc"
        assert await answer(engine) == "abc" and len(engines.spawned) == 2

    run(body)


def test_a_death_without_a_word_is_explained_by_how_the_process_ended() -> None:
    async def body(replica: Replica, engine: AsyncEngine, engines: Engines) -> None:
        await replica.start(engine)
        engines.spawned[0].go.clear()
        generation = ask(engine)
        engines.spawned[0].die()
        assert "exit code -9" in (await replica.wait_died()).message
        assert generation.error is None and not generation.finished

    run(body)


def test_stopping_it_ends_what_is_open_and_is_no_death() -> None:
    async def body(replica: Replica, engine: AsyncEngine, engines: Engines) -> None:
        await replica.start(engine)
        engines.spawned[0].go.clear()
        generation = ask(engine)
        death = asyncio.create_task(replica.wait_died())
        await replica.stop()
        with pytest.raises(ReplicaDied, match="shut down"):
            await generation.completed()
        assert not death.done()
        death.cancel()

    run(body)


def test_start_up_is_followed_and_its_failure_reported() -> None:
    seen: list[PhaseProgress] = []

    async def body(replica: Replica, engine: AsyncEngine, engines: Engines) -> None:
        start = asyncio.create_task(replica.start(engine, seen.append))
        while not engines.spawned:
            await asyncio.sleep(0)
        with pytest.raises(ReplicaDied, match="still starting"):
            ask(engine)
        engines.spawned[0].channel.send(PhaseProgress(1, "weights", 5, 10))
        engines.spawned[0].channel.send(EngineFailed("no memory"))
        with pytest.raises(ReplicaDied, match="no memory"):
            await start
        assert [(p.phase, p.done) for p in seen] == [("weights", 5)]
        with pytest.raises(ReplicaDied, match="no memory"):
            ask(engine)

    run(body, Engines(say_ready=False))
