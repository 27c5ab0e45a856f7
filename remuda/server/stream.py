"""Server-sent events: chunks put together from prebuilt bytes, one write per request and engine step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from remuda.engine.generation import Generation
from remuda.engine.output import OutputProcessor
from remuda.protocol.errors import RemudaError
from remuda.server.errors import error_body
from remuda.server.http import Exchange
from remuda.server.protocol import AnswerDelta, Usage

SSE_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": recovering\n\n"  # a comment: clients skip it, proxies see that the stream lives
to_json = msgspec.json.Encoder().encode


class ChunkFormat:
    """The chunks of one streamed response. Only what changes from token to token is encoded anew.

    A chunk is  head | index | open | text | close | rest,  where open and close are `"text":` and nothing for
    completions, `"delta":{"content":` and `}` for chat.
    """

    def __init__(self, *, object_: str, id_: str, created: int, model: str, chat: bool) -> None:
        envelope = to_json({"id": id_, "object": object_, "created": created, "model": model})[:-1]
        self._envelope = b"data: " + envelope
        self._head = self._envelope + b',"choices":[{"index":'
        self._open, self._close = (b',"delta":{"content":', b"}") if chat else (b',"text":', b"")
        self._plain_tail = self._close + b',"logprobs":null,"finish_reason":null,"stop_reason":null}]}\n\n'
        self._plain_heads: dict[int, bytes] = {}

    def text(self, index: int, text: str) -> bytes:
        """The common chunk: text and nothing else."""
        head = self._plain_heads.get(index)
        if head is None:
            head = self._plain_heads[index] = self._head + b"%d" % index + self._open
        return head + to_json(text) + self._plain_tail

    def full(
        self, processor: OutputProcessor, text: str, *, logprobs: Any, extra: dict[str, Any], usage: Usage | None
    ) -> bytes:
        """A chunk with everything. `extra`: more fields of the choice."""
        body = self._open + to_json(text) + self._close
        return self._whole(processor, body, processor.finish_reason, logprobs, extra, usage)

    def delta(
        self,
        processor: OutputProcessor,
        delta: AnswerDelta,
        finish_reason: str | None,
        logprobs: Any,
        extra: dict[str, Any],
        usage: Usage | None,
    ) -> bytes:
        """Chat's chunk of an answer that is more than text."""
        return self._whole(processor, b',"delta":' + to_json(delta), finish_reason, logprobs, extra, usage)

    def _whole(
        self,
        processor: OutputProcessor,
        body: bytes,
        finish_reason: str | None,
        logprobs: Any,
        extra: dict[str, Any],
        usage: Usage | None,
    ) -> bytes:
        return b"".join([
            self._head, b"%d" % processor.index, body,
            b',"logprobs":', to_json(logprobs),
            b',"finish_reason":', to_json(finish_reason),
            b',"stop_reason":', to_json(None if finish_reason is None else processor.stop_reason),
            _fields(extra), b"}]", b"" if usage is None else _fields({"usage": usage}), b"}\n\n",
        ])  # fmt: skip

    def role(self, index: int, extra: dict[str, Any]) -> bytes:
        """Chat's first chunk of a choice; `extra`: more fields of the response."""
        delta = b',"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
        return self._head + b"%d" % index + delta + _fields(extra) + b"}\n\n"

    def usage(self, usage: Usage) -> bytes:
        """The chunk of stream_options.include_usage: no choices."""
        return self._envelope + b',"choices":[],"usage":' + to_json(usage) + b"}\n\n"


def _fields(values: dict[str, Any]) -> bytes:
    """More members for an object that has some."""
    return b"".join([b',"%s":%s' % (name.encode(), to_json(value)) for name, value in values.items()])


def error_event(error: RemudaError) -> bytes:
    return b"data: " + error_body(error) + b"\n\n"


async def stream_events(
    exchange: Exchange,
    generation: Generation,
    *,
    first: bytes,
    render: Callable[[OutputProcessor], bytes],
    last: Callable[[], bytes],
) -> None:
    """Send `first`, then `render` of every change, then `last`.

    The status line waits for the first token, so that a request that fails before it still gets a proper status; later
    errors become an event of their own. A client that disconnects aborts the generation. While a replica recovers,
    comments keep the stream open (and begin it).
    """
    watch = exchange.on_disconnect(generation.close)
    try:
        pending = first
        while True:
            changed = await generation.changed()
            finished = generation.finished
            error = generation.error
            if error is not None and not exchange.started:
                raise error
            data = pending + b"".join([render(p) for p in changed if p.error is None])
            if not changed and not finished:
                data += KEEP_ALIVE
            if not exchange.started:
                await exchange.start(200, SSE_HEADERS)
            if error is not None:
                await exchange.finish(data + error_event(error) + DONE)
                return
            if finished:
                await exchange.finish(data + last() + DONE)
                return
            if data:
                await exchange.write(data)
                pending = b""
    finally:
        watch.cancel()
        generation.close()
