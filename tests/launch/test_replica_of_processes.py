"""A replica with a real engine process and real rank processes, whose model only waits."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

import msgspec
import pytest

from remuda.engine.client import AsyncEngine
from remuda.engine.input import InputProcessor
from remuda.engine.output import OutputProcessor
from remuda.launch.replica import Replica
from remuda.metrics.serving import ServingMetrics
from remuda.protocol.errors import ReplicaDied
from remuda.protocol.sampling import SamplingParams
from tests.executor.replica import config
from tests.processes import descendants, titled, wait_until_gone

CONFIG = msgspec.structs.replace(config(1, 2), native_kernels="off")


async def answer(engine: AsyncEngine) -> list[int]:
    params = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True)
    (request,) = InputProcessor(CONFIG.model, None, 64).requests("r", [5, 6, 7], params)
    generation = engine.submit([request], [OutputProcessor(None, request.sampling)], stream=False)
    await generation.completed()
    return generation.processors[0].token_ids


def test_an_engine_killed_while_it_starts_leaves_no_process_and_no_socket() -> None:
    async def main() -> None:
        replica = Replica(CONFIG)
        start = asyncio.create_task(replica.start(AsyncEngine(CONFIG.scheduler, ServingMetrics(64))))
        while not (launchers := [p for p in descendants(os.getpid()) if "launcher" in p.title]):
            await asyncio.sleep(0.01)
        family = descendants(os.getpid())
        engine = titled("remuda: engine")
        sockets = f"remuda-{engine.pid}-*"
        assert launchers and list(Path(tempfile.gettempdir()).glob(sockets))
        engine.kill()
        with pytest.raises(ReplicaDied, match="SIGKILL"):
            await start
        await replica.stop()
        wait_until_gone(family, 20)
        assert not list(Path(tempfile.gettempdir()).glob(sockets))

    asyncio.run(asyncio.wait_for(main(), 60))


def test_after_a_rank_was_killed_it_starts_again_behind_the_same_client() -> None:
    async def main() -> None:
        engine = AsyncEngine(CONFIG.scheduler, ServingMetrics(64))
        with Replica(CONFIG) as replica:
            await replica.start(engine)
            first = await answer(engine)
            family = descendants(os.getpid())
            titled("remuda: rank 1 tp0 pp1").kill()
            death = await replica.wait_died()
            assert death.rank == 1 and "SIGKILL" in death.message
            await replica.stop()
            wait_until_gone(family)
            await replica.start(engine)
            assert await answer(engine) == first and len(first) == 5
            family = descendants(os.getpid())
        wait_until_gone(family)

    asyncio.run(asyncio.wait_for(main(), 60))
