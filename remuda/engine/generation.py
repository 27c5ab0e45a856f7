"""The sequences of one API call, as the call waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from remuda.engine.output import OutputProcessor
from remuda.protocol.errors import RemudaError

if TYPE_CHECKING:
    from remuda.engine.client import AsyncEngine


class Generation:
    """The sequences of one API call and the one consumer that waits for them.

    With `stream`, `changed()` returns at every step that brought something; without, only when all have ended.
    Always `close()` it: that aborts what still runs.
    """

    def __init__(self, engine: AsyncEngine, processors: Sequence[OutputProcessor], *, stream: bool) -> None:
        self.processors = processors
        self._engine = engine
        self._stream = stream
        self._running = len(processors)
        self._changed: dict[int, OutputProcessor] = {}
        self._waiter: asyncio.Future[None] | None = None
        self.request_ids: list[str] = []

    @property
    def finished(self) -> bool:
        return self._running == 0

    @property
    def error(self) -> RemudaError | None:
        return next((p.error for p in self.processors if p.error is not None), None)

    async def changed(self) -> list[OutputProcessor]:
        """Wait until there is something new; the processors that changed.

        None: the generation was closed, or nothing is new for long and the consumer may say so (`keep_alive`).
        """
        if not self._changed and self._running:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        changed = list(self._changed.values())
        self._changed.clear()
        return changed

    async def completed(self) -> None:
        """Wait until every sequence has ended; raises the error of the first that failed."""
        while self._running:
            await self.changed()
        if (error := self.error) is not None:
            raise error

    def close(self) -> None:
        """Abort what still runs, and let a waiting consumer go. Idempotent."""
        if self._running:
            self._engine.abort(self.request_ids)

    def notify(self, key: int, processor: OutputProcessor, *, ended: bool) -> None:
        """Called by the engine client after `processor` took something over."""
        self._running -= ended
        if self._stream or self._running == 0:
            self._changed[key] = processor
            self._wake()

    def keep_alive(self) -> None:
        """Let a stream's consumer go for a moment although nothing is new."""
        if self._stream:
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
