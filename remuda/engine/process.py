"""The engine core as a process of its own, behind one stream socket to its client."""

from __future__ import annotations

import select
import socket
import sys
import traceback

from remuda.config.engine import EngineConfig
from remuda.engine.core import EngineCore
from remuda.engine.garbage import PacedGarbageCollector
from remuda.engine.ports import Executor, StartReport
from remuda.engine.report import layout_report, max_concurrency
from remuda.protocol.errors import RemudaError, ReplicaDied
from remuda.protocol.request import (
    AbortRequest,
    EngineFailed,
    EngineMessage,
    EngineReady,
    EngineRequest,
    FinishReason,
    RequestError,
    RequestOutput,
    ResetPrefixCache,
    Shutdown,
    StatsRequest,
    StepOutputs,
)
from remuda.protocol.wire import Channel, WireError, engine_side_of_client


def run_engine(config: EngineConfig, executor: Executor, client_socket: socket.socket) -> None:
    """Start the ranks, serve one client until it says Shutdown or goes away, then end every rank.

    Exits with status 1 if the replica could not start or died; the client has been told why.
    """
    channel = engine_side_of_client(client_socket)
    try:
        start = executor.start(channel.send)
        core = EngineCore(config, executor, start)
        garbage = PacedGarbageCollector()  # for good: this process does nothing else afterwards
        channel.send(_ready(config, core, start))
        _serve(core, channel, garbage)
    except WireError:
        pass  # the client is gone, and with it everyone who waits for an answer
    except RemudaError as error:
        _report_failure(channel, error)
        sys.exit(1)
    except Exception as error:
        traceback.print_exc()
        message = f"the engine failed ({type(error).__name__}: {error}); its log has the traceback"
        _report_failure(channel, RemudaError(message))
        sys.exit(1)
    finally:
        executor.shutdown()
        channel.close()


def _serve(core: EngineCore, channel: Channel, garbage: PacedGarbageCollector) -> None:
    """The loop: read what the client sent, run a step, send what it brought. Sleeps when there is nothing to do."""
    client = channel.fileno()
    poller = select.epoll()
    for descriptor in (client, *core.executor.filenos()):
        poller.register(descriptor, select.EPOLLIN)
    only_asking = not core.executor.filenos()  # nothing wakes us when a result is there
    while True:
        if not core.has_work:
            garbage.when_idle()
        ready = poller.poll(0 if only_asking and core.has_work else None)
        if any(descriptor == client for descriptor, _ in ready):
            channel.fill()
            for message in channel.pop():
                if isinstance(message, Shutdown):
                    return
                _handle(core, channel, message)
        outputs = core.step(block=only_asking)
        if outputs is not None:
            channel.send(outputs)
            garbage.after_step()


def _handle(core: EngineCore, channel: Channel, message: object) -> None:
    match message:
        case EngineRequest():
            try:
                core.add(message)
            except RemudaError as error:
                channel.send(StepOutputs([_refusal(message.request_id, error)]))
        case AbortRequest():
            core.abort(message.request_ids)
        case StatsRequest():
            channel.send(core.stats())
        case ResetPrefixCache():
            core.reset_prefix_cache()


def _refusal(request_id: str, error: RemudaError) -> RequestOutput:
    reason = RequestError(error.message, error.http_status, error.param, error.code)
    return RequestOutput(request_id, [], FinishReason.ERROR, error=reason)


def _ready(config: EngineConfig, core: EngineCore, start: StartReport) -> EngineMessage:
    return EngineReady(
        max_model_len=config.scheduler.max_model_len,
        kv_pages=start.kv_pages,
        block_size=config.cache.block_size,
        max_concurrency=max_concurrency(config, core.scheduler),
        report=layout_report(config, start, core.scheduler),
    )


def _report_failure(channel: Channel, error: RemudaError) -> None:
    died = error if isinstance(error, ReplicaDied) else ReplicaDied(error.message)
    try:
        channel.send(EngineFailed(died.message, died.node, died.rank, died.cause))
    except WireError:
        print(f"remuda: engine: {error.message}", file=sys.stderr)
