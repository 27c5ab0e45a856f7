"""A replica that is started again whenever it has died, with engines that speak the real protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from remuda.config.engine import EngineConfig
from remuda.engine.client import AsyncEngine
from remuda.engine.generation import Generation
from remuda.engine.output import OutputProcessor
from remuda.launch.keeper import keep
from remuda.launch.replica import Replica
from remuda.metrics.serving import ServingMetrics
from remuda.protocol.errors import CrashesReplica
from remuda.protocol.request import EngineFailed
from remuda.protocol.sampling import SamplingParams
from tests.launch.test_replica import CONFIG, INPUT_PROCESSOR, TOKENIZER
from tests.server.fake_engine import FakeEngine


class Life:
    """A kept replica, its engines one after the other, and the pauses before each."""

    def __init__(self, engines: Callable[[int], FakeEngine]) -> None:
        self.client = AsyncEngine(CONFIG.scheduler, ServingMetrics(256))
        self.spawned: list[FakeEngine] = []
        self.pauses_s: list[float] = []
        self._engines = engines

    def spawn(self, config: EngineConfig) -> FakeEngine:
        self.spawned.append(self._engines(len(self.spawned)))
        self.spawned[-1].start()
        return self.spawned[-1]

    async def pause(self, seconds: float) -> None:
        self.pauses_s.append(seconds)
        await asyncio.sleep(0)

    def ask(self, name: str, text: str = "abc", **sampling: object) -> Generation:
        params = SamplingParams(**{"max_tokens": 3, **sampling})  # type: ignore[arg-type]
        requests = INPUT_PROCESSOR.requests(name, TOKENIZER.encode(text), params)
        processors = [OutputProcessor(TOKENIZER, r.sampling, index=i) for i, r in enumerate(requests)]
        return self.client.submit(requests, processors, stream=False)


def run(life: Life, body: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        replica = Replica(CONFIG, life.spawn)
        await replica.start(life.client)
        keeper = asyncio.create_task(keep(replica, life.client, life.pause))
        try:
            await asyncio.wait_for(body(), 20)
        finally:
            keeper.cancel()
            await asyncio.wait([keeper])
            await replica.stop()
        assert not any(fake.is_alive() for fake in life.spawned)

    asyncio.run(main())


def patient(number: int) -> FakeEngine:
    """The first generates nothing by itself; later ones do."""
    fake = FakeEngine()
    if number == 0:
        fake.go.clear()
    return fake


def unready(number: int) -> FakeEngine:
    """As `patient`, but later ones become ready when they are told to."""
    fake = patient(number)
    fake.say_ready = number == 0
    return fake


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_requests_go_on_after_their_last_token_and_keep_their_seed() -> None:
    life = Life(patient)

    async def body() -> None:
        begun = life.ask("begun", "abcdef", max_tokens=6, n=2, temperature=1.0)
        stopped = life.ask("stopped", "abcdef", max_tokens=6, stop=["cd"])
        await until(lambda: len(life.spawned[0].open) == 3)
        for _ in range(3):  # the stop string is half seen
            life.spawned[0].step()
        await until(lambda: len(begun.processors[1].token_ids) == 3)
        life.spawned[0].die("rank 3 died")
        for generation in (begun, stopped):
            await generation.completed()
        assert [p.text() for p in begun.processors] == ["abcdef", "abcdef"]
        assert stopped.processors[0].text() == "ab"
        first, second = life.spawned[0].requests, life.spawned[1].requests
        assert [r.request_id for r in second] == [r.request_id for r in first]
        assert [r.sampling for r in second] == [r.sampling for r in first] and first[0].sampling.seed is not None
        assert all(len(r.emitted_token_ids) == 3 for r in second)
        metrics = life.client.metrics
        assert metrics.recoveries["rank"] == 1 and metrics.requests_replayed == 3 and metrics.recovery_seconds > 0

    run(life, body)


def test_who_has_left_or_leaves_meanwhile_is_not_replayed() -> None:
    life = Life(unready)

    async def body() -> None:
        stays, leaves = life.ask("stays"), life.ask("leaves")
        await until(lambda: len(life.spawned[0].open) == 2)
        life.spawned[0].die()
        await until(lambda: life.client.unavailable is not None)
        leaves.close()
        late = life.ask("late")
        await until(lambda: len(life.spawned) == 2)
        life.spawned[1].become_ready()
        await stays.completed()
        await late.completed()
        assert [r.request_id for r in life.spawned[1].requests] == ["stays", "late"]

    run(life, body)


def test_a_query_of_death_ends_alone_and_the_others_go_on() -> None:
    class Mortal(FakeEngine):
        def step(self) -> None:
            if any(request_id == "deadly" for request_id in self.open):
                self.die("rank 0 died")
            else:
                super().step()

    life = Life(lambda number: Mortal())

    async def body() -> None:
        deadly = life.ask("deadly")
        harmless = [life.ask(f"r{i}") for i in range(5)]
        for generation in harmless:
            await generation.completed()
            assert generation.processors[0].text() == "abc"
        assert isinstance(deadly.error, CrashesReplica) and "rank 0 died" in deadly.error.message
        assert len(life.spawned) == 4

    run(life, body)


def test_starts_that_fail_are_tried_again_ever_more_slowly() -> None:
    class Stillborn(FakeEngine):
        def become_ready(self) -> None:
            self.channel.send(EngineFailed("no memory"))

    def engines(number: int) -> FakeEngine:
        return Stillborn() if number in range(1, 5) else patient(number)

    life = Life(engines)

    async def body() -> None:
        generation = life.ask("r")
        await until(lambda: len(life.spawned[0].open) == 1)
        life.spawned[0].step()
        await until(lambda: life.client.fruitful)
        life.spawned[0].die()
        await generation.completed()
        assert life.pauses_s == [0, 1, 2, 4, 8]
        assert life.client.metrics.recoveries == {"rank": 0, "node": 0, "engine": 1, "start": 4}

    run(life, body)


def test_counters_do_not_fall_when_an_engine_dies() -> None:
    life = Life(lambda number: FakeEngine())

    async def body() -> None:
        for lives in range(1, 4):
            await until(lambda: len(life.spawned) == lives and life.client.unavailable is None)  # noqa: B023
            assert life.client.metrics.engine.steps == 7 * (lives - 1)
            await life.client.stats()
            assert life.client.metrics.engine.steps == 7 * lives and life.client.metrics.engine.kv_pages_used == 25
            life.spawned[-1].die()

    run(life, body)
