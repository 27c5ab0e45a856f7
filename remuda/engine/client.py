"""The server's view of the engine: sequences in, tokens out, one message per engine step.

There is no queue and no task per token: the message of a step is handed out synchronously, each sequence's processor
takes what is its own, and every consumer that waits is woken once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence

import msgspec

from remuda.config.engine import SchedulerConfig
from remuda.engine.connection import EngineConnection
from remuda.engine.generation import Generation
from remuda.engine.output import OutputProcessor
from remuda.metrics.serving import SequenceTimes, ServingMetrics
from remuda.protocol.errors import InvalidRequest, QueueFull, RemudaError, ReplicaDied
from remuda.protocol.request import (
    AbortRequest,
    ClientMessage,
    EngineRequest,
    EngineStats,
    FinishReason,
    RequestOutput,
    ResetPrefixCache,
    StatsRequest,
    StepOutputs,
)

log = logging.getLogger("remuda.engine.client")


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

    def remainder(self) -> EngineRequest:
        """The request that brings, from another engine, what its client has not received from this one."""
        return msgspec.structs.replace(self.request, emitted_token_ids=list(self.processor.token_ids))


def _push(processor: OutputProcessor, output: RequestOutput) -> bool:
    """Whatever one sequence's text does to its decoder, the other sequences of the step go on."""
    try:
        return processor.push(output)
    except Exception:
        log.exception("output of request %s cannot be processed", output.request_id)
        processor.fail(RemudaError("internal error; the server's log has the details"))
        return output.finish_reason is None


class AsyncEngine:
    """Where a server hands in sequences. It outlives the engine: a replica attaches itself when it serves.

    Every open sequence stays in a journal. When the engine is gone they all end with the reason.
    """

    def __init__(self, scheduler: SchedulerConfig, metrics: ServingMetrics) -> None:
        self.metrics = metrics
        self.unavailable: ReplicaDied | None = ReplicaDied("the engine is still starting")  # None: it serves
        self._connection: EngineConnection | None = None
        self._journal: dict[str, OpenSequence] = {}
        self._capacity = scheduler.max_num_seqs + scheduler.max_waiting
        self._stats_waiters: list[asyncio.Future[EngineStats]] = []

    # ------------------------------------------------------------------------------------------- lives of the engine

    def attach(self, connection: EngineConnection) -> None:
        """The engine at the other end of `connection` serves from now on."""
        self._connection = connection
        self.unavailable = None

    def detach(self, reason: ReplicaDied) -> None:
        """The engine is gone. Until another is attached, what is open and what comes ends with `reason`."""
        self._connection = None
        self.unavailable = reason
        self.fail_all(reason)
        for waiter in self._stats_waiters:
            if not waiter.done():
                waiter.set_exception(reason)
        self._stats_waiters.clear()

    def take(self, message: StepOutputs | EngineStats) -> None:
        """What the attached engine has to say."""
        if isinstance(message, StepOutputs):
            self._on_outputs(message)
        else:
            self._on_stats(message)

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
        if self.unavailable is not None:
            raise self.unavailable
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
        self._send(*requests)
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
        if self._journal:
            self._send(AbortRequest(list(self._journal)))
        sequences = list(self._journal.values())
        self._journal.clear()
        for sequence in sequences:
            sequence.processor.fail(error)
            self._end_by_client(sequence, FinishReason.ERROR)

    async def stats(self) -> EngineStats:
        """Ask the engine for a fresh snapshot."""
        if self.unavailable is not None:
            raise self.unavailable
        waiter: asyncio.Future[EngineStats] = asyncio.get_running_loop().create_future()
        self._stats_waiters.append(waiter)
        self._send(StatsRequest())
        return await waiter

    def reset_prefix_cache(self) -> None:
        self._send(ResetPrefixCache())

    # -------------------------------------------------------------------------------------------------------- messages

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

    def _end_by_client(self, sequence: OpenSequence, reason: FinishReason) -> None:
        if not sequence.processor.finished:
            sequence.processor.finish_reason = reason
        self.metrics.ended(sequence.times, reason, time.monotonic())
        sequence.generation.notify(sequence.key, sequence.processor, ended=True)

    def _send(self, *messages: ClientMessage) -> None:
        if self._connection is not None:
            self._connection.send(*messages)
