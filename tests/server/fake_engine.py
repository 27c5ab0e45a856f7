"""An engine that thinks of nothing: it speaks the real protocol over a real socket and answers from a script."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable

from remuda.protocol.request import (
    AbortRequest,
    EngineFailed,
    EngineReady,
    EngineRequest,
    EngineStats,
    FinishReason,
    RequestOutput,
    Shutdown,
    StatsRequest,
    StepOutputs,
    TokenLogprobs,
)
from remuda.protocol.wire import WireError, engine_side_of_client

Script = Callable[[EngineRequest], list[int]]


def echo_prompt(request: EngineRequest) -> list[int]:
    """Says what it was told, over and over (without the first token, which is BOS)."""
    said = request.prompt_token_ids[1:] or request.prompt_token_ids
    return said * ((request.sampling.max_tokens or 1) // len(said) + 1)


class FakeEngine(threading.Thread):
    """One token per step and sequence. While `go` is unset, nothing is generated."""

    def __init__(self, script: Script = echo_prompt) -> None:
        super().__init__(daemon=True)
        self.sock, mine = socket.socketpair()
        self.channel = engine_side_of_client(mine)
        self.script = script
        self.go = threading.Event()
        self.go.set()
        self.requests: list[EngineRequest] = []  # everything that ever arrived
        self.open: dict[str, tuple[EngineRequest, list[int], int]] = {}  # request, its script, tokens emitted
        self.aborted: list[str] = []
        self.changed = threading.Condition()
        self.say_ready = True
        self.stopped = False

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, timeout_s), "the engine never got there"

    def how_it_ended(self) -> str:
        return "exit code -9"

    def stop(self, limit_s: float) -> None:
        """As a replica ends its engine process."""
        self.join(limit_s)

    def die(self, message: str | None = None) -> None:
        """Report a failure, or (without a message) vanish."""
        if message is not None:
            self.channel.send(EngineFailed(message, node=1, rank=3))
        self.stopped = True
        with contextlib.suppress(OSError):  # whoever heard the message has closed the connection already
            self.channel.sock.shutdown(socket.SHUT_RDWR)

    def become_ready(self) -> None:
        self.channel.send(EngineReady(256, 100, 16, 6.2, "a layout"))

    def run(self) -> None:
        if self.say_ready:
            self.become_ready()
        try:
            while not self.stopped:
                busy = bool(self.open) and self.go.is_set()
                if select.select([self.channel.sock], [], [], 0 if busy else 0.002)[0]:
                    self.channel.fill()
                    for message in self.channel.pop():
                        self.take(message)
                if self.open and self.go.is_set():
                    self.step()
        except (WireError, OSError, ValueError):
            pass
        self.channel.close()

    def take(self, message: object) -> None:
        with self.changed:
            match message:
                case EngineRequest():
                    self.requests.append(message)
                    self.open[message.request_id] = (message, self.script(message), len(message.emitted_token_ids))
                case AbortRequest():
                    self.aborted += message.request_ids
                    for id_ in message.request_ids:
                        self.open.pop(id_, None)
                case StatsRequest():
                    self.channel.send(
                        EngineStats(running=len(self.open), kv_pages_total=100, kv_pages_used=25, steps=7)
                    )
                case Shutdown():
                    self.stopped = True
            self.changed.notify_all()

    def step(self) -> None:
        outputs = []
        for id_, (request, script, done) in list(self.open.items()):
            token = script[done]
            reason = None
            if token in request.sampling.ending_token_ids:
                reason = FinishReason.STOP
            elif done + 1 == request.sampling.max_tokens:
                reason = FinishReason.LENGTH
            custom = token if token in request.sampling.stop_token_ids else None
            outputs.append(RequestOutput(
                id_, [token], reason, stop_token_id=custom if reason is FinishReason.STOP else None,
                logprobs=self.logprobs(token, request.sampling.logprobs),
                prompt_logprobs=self.prompt_logprobs(request) if done == 0 else None,
                cached_tokens=1 if done == 0 else 0,
            ))  # fmt: skip
            if reason is None:
                self.open[id_] = (request, script, done + 1)
            else:
                del self.open[id_]
        self.channel.send(StepOutputs(outputs))
        with self.changed:
            self.changed.notify_all()

    @staticmethod
    def logprobs(token: int, top: int | None) -> list[TokenLogprobs] | None:
        """The sampled token at -0.5 and rank 1; the likeliest are itself and the ids after it."""
        if top is None:
            return None
        ids = [token, *range(token, token + top)]
        return [TokenLogprobs(ids, [-0.5, *[-0.5 - i for i in range(top)]], 1)]

    def prompt_logprobs(self, request: EngineRequest) -> list[TokenLogprobs | None] | None:
        top = request.sampling.prompt_logprobs
        if top is None:
            return None
        return [None, *[self.logprobs(token, top)[0] for token in request.prompt_token_ids[1:]]]
