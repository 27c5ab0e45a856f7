"""AsyncEngine against a scripted engine on a real socket, without HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from remuda.config.engine import SchedulerConfig
from remuda.engine.client import AsyncEngine
from remuda.engine.connection import EngineConnection
from remuda.engine.generation import Generation
from remuda.engine.input import InputProcessor
from remuda.engine.output import OutputProcessor
from remuda.metrics.serving import ServingMetrics
from remuda.protocol.errors import InvalidRequest, QueueFull, Recovering, RemudaError, ReplicaDied
from remuda.protocol.request import FinishReason, RequestOutput, StepOutputs
from remuda.protocol.sampling import SamplingParams
from tests.server.fake_engine import FakeEngine
from tests.text import tiny

TOKENIZER = tiny.tokenizer()
INPUT_PROCESSOR = InputProcessor(tiny.model_config(Path()), TOKENIZER, 256)


def new_client() -> AsyncEngine:
    return AsyncEngine(SchedulerConfig(max_num_seqs=2, max_waiting=2), ServingMetrics(256))


def patient_engine() -> FakeEngine:
    """One that generates nothing by itself."""
    fake = FakeEngine()
    fake.go.clear()
    fake.start()
    return fake


def run(body: Callable[[AsyncEngine, FakeEngine], Awaitable[None]]) -> None:
    """`body` with a client of an engine that generates nothing by itself."""

    async def main() -> None:
        client, fake = new_client(), patient_engine()
        connection = EngineConnection(client, fake.how_it_ended, lambda progress: None)
        await connection.open(fake.sock)
        await connection.wait_ready()
        try:
            await asyncio.wait_for(body(client, fake), 20)
        finally:
            connection.close()
            await asyncio.to_thread(fake.join, 20)

    asyncio.run(main())


def start(client: AsyncEngine, *, stream: bool = True, name: str = "r", **sampling: object) -> Generation:
    requests = INPUT_PROCESSOR.requests(name, TOKENIZER.encode("abc"), SamplingParams(**sampling))  # type: ignore[arg-type]
    processors = [OutputProcessor(TOKENIZER, r.sampling, index=i) for i, r in enumerate(requests)]
    return client.submit(requests, processors, stream=stream)


async def arrived(fake: FakeEngine, count: int) -> None:
    await asyncio.to_thread(fake.wait_for, lambda: len(fake.open) == count)


def test_a_stream_wakes_at_every_step() -> None:
    async def body(client: AsyncEngine, fake: FakeEngine) -> None:
        generation = start(client, max_tokens=3, n=2)
        await arrived(fake, 2)
        for step in range(3):
            assert not generation.finished
            fake.step()
            seen = {p.index for p in await generation.changed()}
            while len(seen) < 2:
                seen |= {p.index for p in await generation.changed()}
            assert [len(p.token_ids) for p in generation.processors] == [step + 1] * 2
        assert generation.finished and await generation.changed() == []

    run(body)


def test_a_whole_answer_wakes_once() -> None:
    async def body(client: AsyncEngine, fake: FakeEngine) -> None:
        generation = start(client, stream=False, max_tokens=5)
        await arrived(fake, 1)
        waiting = asyncio.create_task(generation.changed())
        for _ in range(4):
            fake.step()
        await client.stats()  # the four steps have been read
        assert not waiting.done() and len(generation.processors[0].token_ids) == 4
        fake.step()
        assert await waiting == list(generation.processors)
        await generation.completed()

    run(body)


def test_closing_aborts_what_runs() -> None:
    async def body(client: AsyncEngine, fake: FakeEngine) -> None:
        generation = start(client, n=2)
        await arrived(fake, 2)
        generation.close()
        generation.close()
        assert generation.finished and client.open_sequences == 0
        assert [p.finish_reason for p in generation.processors] == [FinishReason.ABORT] * 2
        await generation.completed()
        await asyncio.to_thread(fake.wait_for, lambda: len(fake.aborted) == 2)
        # The engine may have sent something before it heard of it.
        fake.channel.send(StepOutputs([RequestOutput("r-0", [1])]))
        await client.stats()
        assert generation.processors[0].token_ids == []

    run(body)


def test_the_queue_is_bounded_and_opens_again() -> None:
    async def body(client: AsyncEngine, fake: FakeEngine) -> None:
        first = start(client, n=3)
        with pytest.raises(QueueFull):
            start(client, n=2, name="more")
        assert client.open_sequences == 3  # nothing of a refused call was started
        with pytest.raises(InvalidRequest, match="at most 4"):
            start(client, n=5, name="most")
        first.close()
        start(client, n=4, name="later").close()

    run(body)


@pytest.mark.parametrize("message", ["rank 3 died", None])
def test_when_the_engine_dies_what_is_open_and_what_comes_waits(message: str | None) -> None:
    async def body(client: AsyncEngine, fake: FakeEngine) -> None:
        generation = start(client, n=2)
        await arrived(fake, 2)
        statistics = asyncio.create_task(client.stats()) if message is None else None
        fake.die(message)
        while client.unavailable is None:
            await asyncio.sleep(0.001)
        assert client.unavailable.code == "recovering" and (message or "exit code -9") in client.unavailable.message
        if statistics is not None:
            with pytest.raises(ReplicaDied):
                await statistics
        assert not any(p.error for p in generation.processors) and client.open_sequences == 2
        start(client, n=2, name="while there is room")
        with pytest.raises(Recovering):
            start(client, name="one too many")
        with pytest.raises(Recovering):
            await client.stats()
        client.close()
        with pytest.raises(ReplicaDied, match="shut down"):
            await generation.completed()
        with pytest.raises(ReplicaDied, match="shut down"):
            start(client, name="after the end")

    run(body)


def test_an_engine_that_talks_nonsense_is_dead() -> None:
    async def body(client: AsyncEngine, fake: FakeEngine) -> None:
        start(client)
        await arrived(fake, 1)
        fake.channel.sock.sendall(b"\xff" * 64)
        while client.unavailable is None:
            await asyncio.sleep(0.001)
        assert "not a message" in client.unavailable.message

    run(body)


def test_stop_strings_end_the_sequence_in_the_engine() -> None:
    async def body(client: AsyncEngine, fake: FakeEngine) -> None:
        generation = start(client, stop=["b"])
        fake.go.set()
        await generation.completed()
        assert generation.processors[0].text() == "a"
        await asyncio.to_thread(fake.wait_for, lambda: fake.aborted == ["r"])

    run(body)


def test_one_sequence_that_cannot_be_decoded_harms_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own client gets an error, the engine is told to drop it, and the connection stays up."""
    push = OutputProcessor.push

    def faulty(self: OutputProcessor, output: RequestOutput) -> bool:
        if output.request_id == "bad":
            raise ValueError("odd bytes")
        return push(self, output)

    async def body(client: AsyncEngine, fake: FakeEngine) -> None:
        monkeypatch.setattr(OutputProcessor, "push", faulty)
        bad, good = start(client, name="bad", max_tokens=5), start(client, name="good", max_tokens=5)
        fake.go.set()
        with pytest.raises(RemudaError, match="internal error"):
            await bad.completed()
        await good.completed()
        await asyncio.to_thread(fake.wait_for, lambda: fake.aborted == ["bad"])

    run(body)
