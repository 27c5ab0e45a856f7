"""The server's view of the engine: sequences in, tokens out, one message per engine step.

There is no queue and no task per token: the message of a step is handed out synchronously, each sequence's processor
takes what is its own, and every consumer that waits is woken once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from remuda.config.engine import SchedulerConfig
from remuda.engine.connection import EngineConnection
from remuda.engine.generation import Generation
from remuda.engine.journal import OpenSequence
from remuda.engine.output import OutputProcessor
from remuda.engine.recovery import after_death, next_to_run
from remuda.metrics.serving import ServingMetrics
from remuda.protocol.errors import CrashesReplica, InvalidRequest, QueueFull, Recovering, RemudaError, ReplicaDied
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

KEEP_ALIVE_S = 5.0  # between signs of life of a stream whose replica is being started again


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

    Every open sequence stays in a journal. When the engine dies they wait there, with what comes meanwhile, and the
    next engine goes on with them, in the order and company that `recovery.py` decides.
    """

    def __init__(self, scheduler: SchedulerConfig, metrics: ServingMetrics) -> None:
        self.metrics = metrics
        self.unavailable: RemudaError | None = ReplicaDied("the engine is still starting")  # None: it serves
        self.fruitful = False  # the engine that is attached, or was last, has answered something
        self._connection: EngineConnection | None = None
        self._journal: dict[str, OpenSequence] = {}
        self._some_wait = False  # not everything that is open runs: there is no engine, or one with a trial
        self._down_since_s: float | None = None
        self._sign_of_life: asyncio.TimerHandle | None = None
        self._capacity = scheduler.max_num_seqs + scheduler.max_waiting
        self._stats_waiters: list[asyncio.Future[EngineStats]] = []

    # ------------------------------------------------------------------------------------------- lives of the engine

    def attach(self, connection: EngineConnection) -> None:
        """The engine at the other end of `connection` serves from now on."""
        self._connection = connection
        self.unavailable = None
        self.fruitful = False
        if self._down_since_s is not None:
            self.metrics.recovered(time.monotonic() - self._down_since_s)
            self._down_since_s = None
        self._hand_over()

    def detach(self, reason: ReplicaDied) -> None:
        """The engine has died, or did not even start. What is open, and what comes, waits for the next one."""
        served, self._connection = self._connection is not None, None
        if not served and self._down_since_s is None:
            self.unavailable = reason  # the very first start: nobody has been admitted yet
            return
        self.unavailable = Recovering(f"the model is being started again and will go on soon; {reason.message}")
        self.metrics.engine_gone(reason.cause if served else "start")
        if served:
            self._down_since_s = time.monotonic()
            self._some_wait = True
            self._fail_stats(reason)
            self._judge(reason)
            if self._sign_of_life is not None:
                self._sign_of_life.cancel()
            self._sign_of_life = asyncio.get_running_loop().call_later(KEEP_ALIVE_S, self._keep_streams_alive)

    def close(self) -> None:
        """There will be no other engine: what is open and what comes ends with an error."""
        self._connection = None
        reason = ReplicaDied("the server has shut down")
        self.unavailable = reason
        self.fail_all(reason)
        self._fail_stats(reason)

    def _judge(self, reason: ReplicaDied) -> None:
        """After a death: who waits for the next engine, and who does not get another."""
        left, guilty = after_death({id_: sequence.standing for id_, sequence in self._journal.items()})
        for id_, standing in left.items():
            self._journal[id_].engine_died(standing)
        for id_ in guilty:
            error = CrashesReplica(f"the model dies whenever it runs this request, last with: {reason.message}")
            self._fail(self._journal.pop(id_), error)

    def _hand_over(self) -> None:
        """Give the engine what it is to run now of what waits."""
        if self._connection is None:
            return
        chosen = next_to_run({id_: sequence.standing for id_, sequence in self._journal.items()})
        sequences = [self._journal[id_] for id_ in chosen]
        self.metrics.requests_replayed += sum(sequence.replayed for sequence in sequences)
        self._send(*[sequence.hand_over() for sequence in sequences])
        self._some_wait = not all(sequence.running for sequence in self._journal.values())

    def _keep_streams_alive(self) -> None:
        if self._some_wait:
            for generation in {sequence.generation for sequence in self._journal.values()}:
                generation.keep_alive()
            self._sign_of_life = asyncio.get_running_loop().call_later(KEEP_ALIVE_S, self._keep_streams_alive)

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

    def check_serving(self) -> None:
        """Raise the reason (ReplicaDied, Recovering) if no engine serves now."""
        if self.unavailable is not None:
            raise self.unavailable.with_traceback(None)  # each raise would make the traceback longer

    def check_room(self, sequences: int) -> None:
        """Raise QueueFull (Recovering, if an engine is awaited) if the bounded queue has no room for so many now,
        InvalidRequest if it never has, and ReplicaDied if there is no engine and will be none."""
        if not isinstance(self.unavailable, Recovering):
            self.check_serving()
        if sequences > self._capacity:
            raise InvalidRequest(f"{sequences} sequences in one request: at most {self._capacity}", param="n")
        if len(self._journal) + sequences > self._capacity:
            self.check_serving()
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
        if not self._some_wait:
            self._send(*[self._journal[id_].hand_over() for id_ in generation.request_ids])
        return generation

    def abort(self, request_ids: Sequence[str]) -> None:
        """End sequences early; ids that have ended already are ignored."""
        still_open = [id_ for id_ in request_ids if id_ in self._journal]
        if still_open:
            self._send(AbortRequest(still_open))
        for id_ in still_open:
            self._end_by_client(self._journal.pop(id_), FinishReason.ABORT)
        if self._some_wait:
            self._hand_over()

    def fail_all(self, error: RemudaError) -> None:
        """End every open sequence with `error`; the engine, if it lives, is told to drop them."""
        if self._journal:
            self._send(AbortRequest(list(self._journal)))
        sequences = list(self._journal.values())
        self._journal.clear()
        for sequence in sequences:
            self._fail(sequence, error)

    async def stats(self) -> EngineStats:
        """Ask the engine for a fresh snapshot."""
        self.check_serving()
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
        self.fruitful = True
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
        if self._some_wait:
            self._hand_over()  # a trial may have ended

    def _on_stats(self, stats: EngineStats) -> None:
        self.metrics.engine_says(stats)
        waiters, self._stats_waiters = self._stats_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(stats)

    def _fail_stats(self, reason: ReplicaDied) -> None:
        waiters, self._stats_waiters = self._stats_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(reason)

    def _fail(self, sequence: OpenSequence, error: RemudaError) -> None:
        sequence.processor.fail(error)
        self._end_by_client(sequence, FinishReason.ERROR)

    def _end_by_client(self, sequence: OpenSequence, reason: FinishReason) -> None:
        if not sequence.processor.finished:
            sequence.processor.finish_reason = reason
        self.metrics.ended(sequence.times, reason, time.monotonic())
        sequence.generation.notify(sequence.key, sequence.processor, ended=True)

    def _send(self, *messages: ClientMessage) -> None:
        if self._connection is not None:
            self._connection.send(*messages)
