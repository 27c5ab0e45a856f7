"""The little of HTTP that the API needs, directly on ASGI: no framework between a token and the socket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec

from remuda.protocol.errors import InvalidRequest
from remuda.server.errors import BodyTooLarge, BodyTooSlow, Headers, from_validation

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

JSON = (b"content-type", b"application/json")
BODY_GAP_S = 30.0  # longest wait for the next piece of a body: nobody may hold a connection by sending half of one
T = TypeVar("T")


class ClientGone(Exception):
    """The client closed the connection before its request was complete."""


class Exchange:
    """One request and the response to it. `headers` are added to the response, whatever it is."""

    __slots__ = ("_receive", "_send", "headers", "request_id", "scope", "started")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.headers: Headers = []
        self.request_id = ""
        self.started = False  # the status line is out
        self._receive = receive
        self._send = send

    @property
    def path(self) -> str:
        path: str = self.scope["path"]
        return path.removeprefix(self.scope.get("root_path") or "")

    @property
    def method(self) -> str:
        method: str = self.scope["method"]
        return method

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header, given in lower case."""
        return next((value for key, value in self.scope["headers"] if key == name), None)

    async def body(self, limit: int) -> bytes:
        """The whole request body. Raises BodyTooLarge, BodyTooSlow, and ClientGone if it never comes."""
        announced = self.header(b"content-length")
        if announced is not None and announced.isdigit() and int(announced) > limit:
            raise BodyTooLarge(f"the request body exceeds {limit} bytes")
        parts: list[bytes] = []
        size = 0
        while True:
            try:
                async with asyncio.timeout(BODY_GAP_S):
                    message = await self._receive()
            except TimeoutError:
                raise BodyTooSlow(f"nothing of the request body came for {BODY_GAP_S:g} s") from None
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            size += len(part)
            if size > limit:
                raise BodyTooLarge(f"the request body exceeds {limit} bytes")
            if not message.get("more_body"):
                return b"".join([*parts, part]) if parts else part
            parts.append(part)

    async def json(self, decoder: msgspec.json.Decoder[T], limit: int) -> T:
        """The body as a struct. Raises InvalidRequest naming the field that does not fit."""
        body = await self.body(limit)
        try:
            return decoder.decode(body)
        except msgspec.DecodeError as error:
            raise from_validation(error) from error
        except (UnicodeDecodeError, RecursionError) as error:
            raise InvalidRequest(f"the body is not valid JSON: {error}") from error

    async def until_disconnect(self) -> None:
        """Returns when the client has gone away (or the response is complete)."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def on_disconnect(self, action: Callable[[], None]) -> asyncio.Task[None]:
        """Run `action` should the client go away; cancel the task when the response is out."""
        task = asyncio.get_running_loop().create_task(self.until_disconnect())
        task.add_done_callback(lambda task: None if task.cancelled() else action())
        return task

    async def respond(self, body: bytes, *, status: int = 200, headers: Headers | None = None) -> None:
        """A complete response; JSON unless `headers` give another content-type."""
        headers = headers or []
        if not any(name == b"content-type" for name, _ in headers):
            headers = [JSON, *headers]
        length = (b"content-length", str(len(body)).encode())
        await self.start(status, [*headers, length])
        await self._send({"type": "http.response.body", "body": body})

    async def start(self, status: int, headers: Headers) -> None:
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, *self.headers]})

    async def write(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self, data: bytes = b"") -> None:
        await self._send({"type": "http.response.body", "body": data})
