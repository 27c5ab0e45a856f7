"""Start a replica again whenever it has died."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Never

from remuda.engine.recovery import BackOff
from remuda.launch.replica import Replica
from remuda.protocol.errors import ReplicaDied

if TYPE_CHECKING:
    from remuda.engine.client import AsyncEngine

log = logging.getLogger("remuda.launch")
_LONG_LIFE_S = 60.0  # who lived so long is no part of a crash loop, even if nobody asked anything


async def keep(
    replica: Replica, engine: AsyncEngine, pause: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> Never:
    """For ever: wait until `replica`, which serves `engine`, dies, and start it again. To end it, cancel and `stop`."""
    back_off = BackOff()
    while True:
        born_s = time.monotonic()
        died = await replica.wait_died()
        died_s = time.monotonic()
        log.warning("remuda: %s; starting again (%d sequences are open)", died.message, engine.open_sequences)
        fruitful = engine.fruitful or died_s - born_s >= _LONG_LIFE_S
        while not await _started(replica, engine, pause, back_off.after(fruitful=fruitful)):
            fruitful = False
        log.warning("remuda: serving again, %.1f s after the death", time.monotonic() - died_s)


async def _started(
    replica: Replica, engine: AsyncEngine, pause: Callable[[float], Awaitable[None]], wait_s: float
) -> bool:
    await replica.stop()
    await pause(wait_s)
    try:
        await replica.start(engine)
    except (ReplicaDied, OSError) as error:  # OSError: no process, descriptor or memory to be had just now
        log.warning("remuda: it does not start: %s; trying again", error)
        return False
    return True
