"""The server's end of the engine: sequences in, tokens out, one message per engine step.

There is no queue and no task per token: the message of a step is handed out synchronously, each sequence's processor
takes what is its own, and every consumer that waits is woken once.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import cast

from remuda.config.engine import SchedulerConfig
from remuda.engine.output import OutputProcessor
from remuda.metrics.serving import SequenceTimes, ServingMetrics
from remuda.protocol.errors import InvalidRequest, QueueFull, RemudaError, ReplicaDied
from remuda.protocol.request import (
    AbortRequest,
    ClientMessage,
    EngineFailed,
    EngineProgress,
    EngineReady,
    EngineRequest,
    EngineStats,
    FinishReason,
    RequestOutput,
    ResetPrefixCache,
    Shutdown,
    StatsRequest,
    StepOutputs,
)
from remuda.protocol.wire import WireError, client_side

log = logging.getLogger("remuda.engine.client")


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
        """Wait until there is something new; the processors that changed (none if the generation was closed)."""
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
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)


class OpenSequence:
    """An entry of the journal: everything that replaying a sequence on another replica takes."""

    __slots__ = ("generation", "key", "processor", "request", "times")

    def __init__(
        self, request: EngineRequest, processor: OutputProcessor, generation: Generation, key: int, times: SequenceTimes
    ) -> None:
        self.request = request
        self.processor = processor
        self.generation = generation
        self.key = key
        self.times = times

    @property
    def emitted(self) -> list[int]:
        """Tokens that the client has (or may have) seen."""
        return self.processor.token_ids


def _push(processor: OutputProcessor, output: RequestOutput) -> bool:
    """Whatever one sequence's text does to its decoder, the other sequences of the step go on."""
    try:
        return processor.push(output)
    except Exception:
        log.exception("output of request %s cannot be processed", output.request_id)
        processor.fail(RemudaError("internal error; the server's log has the details"))
        return output.finish_reason is None


class AsyncEngine(asyncio.Protocol):
    """Client of one engine process over a connected stream socket.

    `how_it_ended` says why the engine process is gone ("exit code -9"); it is asked when the connection breaks.
    """

    def __init__(
        self,
        scheduler: SchedulerConfig,
        metrics: ServingMetrics,
        *,
        how_it_ended: Callable[[], str] = lambda: "its process is gone",
        on_progress: Callable[[EngineProgress], None] | None = None,
    ) -> None:
        self.metrics = metrics
        self.ready: EngineReady | None = None
        self.failure: ReplicaDied | None = None
        self._journal: dict[str, OpenSequence] = {}
        self._capacity = scheduler.max_num_seqs + scheduler.max_waiting
        self._how_it_ended = how_it_ended
        self._on_progress = on_progress
        self._closing = False
        self._transport: asyncio.Transport | None = None
        self._state_waiters: list[asyncio.Future[None]] = []
        self._stats_waiters: list[asyncio.Future[EngineStats]] = []

    # ----------------------------------------------------------------------------------------------------- life cycle

    async def connect(self, sock: socket.socket) -> None:
        """Attach to the engine. `wait_ready` tells when it serves."""
        sock.setblocking(False)
        self._channel = client_side(sock)
        loop = asyncio.get_running_loop()
        if sock.family == socket.AF_UNIX:
            await loop.create_unix_connection(lambda: self, sock=sock)
        else:
            await loop.create_connection(lambda: self, sock=sock)

    async def wait_ready(self) -> EngineReady:
        """Wait for the end of start-up; raises ReplicaDied if it failed."""
        while self.ready is None and self.failure is None:
            await self._state_change()
        if self.failure is not None:
            raise self.failure
        assert self.ready is not None
        return self.ready

    async def wait_failed(self) -> ReplicaDied:
        """Wait until the engine is gone."""
        while self.failure is None:
            await self._state_change()
        return self.failure

    async def _state_change(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._state_waiters.append(waiter)
        await waiter

    def shutdown(self) -> None:
        """Tell the engine process to stop. Open sequences end with an error."""
        self._closing = True
        self._send(Shutdown())
        self.fail_all(ReplicaDied("the server has shut down"))

    # ------------------------------------------------------------------------------------------------------- requests

    @property
    def open_sequences(self) -> int:
        return len(self._journal)

    def journal(self) -> Iterator[OpenSequence]:
        """Every open sequence with what it has emitted."""
        return iter(self._journal.values())

    def check_room(self, sequences: int) -> None:
        """Raise ReplicaDied if there is no engine, QueueFull if the bounded queue has no room for so many now, and
        InvalidRequest if it never has."""
        if self.failure is not None:
            raise self.failure
        if self.ready is None:
            raise ReplicaDied("the engine is still starting")
        if sequences > self._capacity:
            raise InvalidRequest(f"{sequences} sequences in one request: at most {self._capacity}", param="n")
        if len(self._journal) + sequences > self._capacity:
            raise QueueFull(f"{len(self._journal)} sequences are open and the queue is bounded; try again soon")

    def submit(
        self, requests: Sequence[EngineRequest], processors: Sequence[OutputProcessor], *, stream: bool
    ) -> Generation:
        """Start sequences; raises what check_room raises."""
        self.check_room(len(requests))
        generation = Generation(self, processors, stream=stream)
        for key, (request, processor) in enumerate(zip(requests, processors, strict=True)):
            times = self.metrics.arrived(request)
            self._journal[request.request_id] = OpenSequence(request, processor, generation, key, times)
            generation.request_ids.append(request.request_id)
        assert self._transport is not None
        self._transport.write(b"".join([self._channel.encode(request) for request in requests]))
        return generation

    def abort(self, request_ids: Sequence[str]) -> None:
        """End sequences early; ids that have ended already are ignored."""
        still_open = [id_ for id_ in request_ids if id_ in self._journal]
        if still_open:
            self._send(AbortRequest(still_open))
        for id_ in still_open:
            self._end_by_client(self._journal.pop(id_), FinishReason.ABORT)

    def fail_all(self, error: RemudaError) -> None:
        """End every open sequence with `error`; the engine, if it lives, is told to drop them."""
        if self._journal and self.failure is None:
            self._send(AbortRequest(list(self._journal)))
        sequences = list(self._journal.values())
        self._journal.clear()
        for sequence in sequences:
            sequence.processor.fail(error)
            self._end_by_client(sequence, FinishReason.ERROR)

    async def stats(self) -> EngineStats:
        """Ask the engine for a fresh snapshot."""
        if self.failure is not None:
            raise self.failure
        waiter: asyncio.Future[EngineStats] = asyncio.get_running_loop().create_future()
        self._stats_waiters.append(waiter)
        self._send(StatsRequest())
        return await waiter

    def reset_prefix_cache(self) -> None:
        self._send(ResetPrefixCache())

    # ----------------------------------------------------------------------------------------- asyncio.Protocol methods

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._channel.feed(data)
        try:
            for message in self._channel.pop():
                self._on_message(message)
        except WireError as error:
            self._fail(ReplicaDied(f"the engine sent something that is not a message: {error}"))
            assert self._transport is not None
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.failure is None:
            how = "the server has shut down" if self._closing else f"the engine is gone: {self._how_it_ended()}"
            self._fail(ReplicaDied(how))

    # -------------------------------------------------------------------------------------------------------- messages

    def _on_message(self, message: object) -> None:
        match message:
            case StepOutputs():
                self._on_outputs(message)
            case EngineStats():
                self._on_stats(message)
            case EngineProgress():
                if self._on_progress is not None:
                    self._on_progress(message)
            case EngineReady():
                self.ready = message
                self._wake_state_waiters()
            case EngineFailed():
                self._fail(ReplicaDied(message.message, node=message.node, rank=message.rank))

    def _on_outputs(self, message: StepOutputs) -> None:
        journal, metrics = self._journal, self.metrics
        now_s = time.monotonic()
        stopped: list[str] = []
        for output in message.outputs:
            sequence = journal.get(output.request_id)
            if sequence is None:
                continue  # aborted, and the engine had not heard of it yet
            processor = sequence.processor
            if _push(processor, output):
                stopped.append(output.request_id)
            if output.token_ids:
                metrics.produced(sequence.times, len(output.token_ids), now_s)
            ended = processor.finished
            if ended:
                del journal[output.request_id]
                metrics.ended(sequence.times, processor.finish_reason or FinishReason.ERROR, now_s)
            sequence.generation.notify(sequence.key, processor, ended=ended)
        if stopped:
            self._send(AbortRequest(stopped))
        if message.stats is not None:
            self._on_stats(message.stats)

    def _on_stats(self, stats: EngineStats) -> None:
        self.metrics.engine = stats
        waiters, self._stats_waiters = self._stats_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(stats)

    def _fail(self, failure: ReplicaDied) -> None:
        self.failure = failure
        self.fail_all(failure)
        for waiter in self._stats_waiters:
            if not waiter.done():
                waiter.set_exception(failure)
        self._stats_waiters.clear()
        self._wake_state_waiters()

    def _end_by_client(self, sequence: OpenSequence, reason: FinishReason) -> None:
        if not sequence.processor.finished:
            sequence.processor.finish_reason = reason
        self.metrics.ended(sequence.times, reason, time.monotonic())
        sequence.generation.notify(sequence.key, sequence.processor, ended=True)

    def _wake_state_waiters(self) -> None:
        for waiter in self._state_waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._state_waiters.clear()

    def _send(self, message: ClientMessage) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(self._channel.encode(message))
