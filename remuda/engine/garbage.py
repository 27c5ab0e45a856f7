"""Python's cyclic garbage collector, moved out of the way of steps: left alone it stops the loop when it likes."""

from __future__ import annotations

import gc

STEPS_BETWEEN_COLLECTIONS = 512


class PacedGarbageCollector:
    """Turns automatic collection off in this process; `after_step` and `when_idle` collect instead.

    The engine makes next to no cycles, so this is a safety net: a young collection visits only what was allocated since
    the last one, and whatever exists at start is never visited again.
    """

    def __init__(self) -> None:
        self._steps = 0
        gc.collect()
        gc.freeze()
        gc.disable()

    def after_step(self) -> None:
        self._steps += 1
        if self._steps % STEPS_BETWEEN_COLLECTIONS == 0:
            gc.collect(0)

    def when_idle(self) -> None:
        """Nothing runs: a good moment for a full collection, if enough has happened since the last one."""
        if self._steps >= STEPS_BETWEEN_COLLECTIONS:
            self._steps = 0
            gc.collect()
