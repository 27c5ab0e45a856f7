"""A streaming HTTP/1.1 client that costs little: on a small machine a heavy load generator measures itself.

Connections are kept and reused; a response body is handed out as server-sent events, as they arrive.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import httptools
import msgspec

from remuda.protocol.errors import ConfigError


class HttpError(Exception):
    """The server answered with an error status, or did not answer."""


class _Response:
    """Callbacks of the parser: collects one response's status and body."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.complete = False
        self.keep_alive = False

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.complete = True


class Connection:
    """One kept-alive connection; one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.reusable = False

    async def exchange(self, request: bytes) -> AsyncIterator[bytes]:
        """Send one request; yield the body in the pieces in which it arrives. Raises HttpError on a status >= 400."""
        self.reusable = False
        self._writer.write(request)
        response = _Response()
        parser = httptools.HttpResponseParser(response)
        while not response.complete:
            data = await self._reader.read(1 << 16)
            if not data:
                raise HttpError("the server closed the connection in the middle of an answer")
            parser.feed_data(data)
            status = parser.get_status_code()
            if status < 400 and response.body:
                yield bytes(response.body)
                response.body.clear()
        if parser.get_status_code() >= 400:
            raise HttpError(f"status {parser.get_status_code()}: {response.body[:300].decode(errors='replace')}")
        self.reusable = parser.should_keep_alive()

    def close(self) -> None:
        self._writer.close()


class Client:
    """A pool of connections to one server."""

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ConfigError(f"--base-url {base_url!r}: write http://HOST:PORT")
        self._host, self._port = url.hostname, url.port or (443 if url.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        self._path = url.path.rstrip("/")
        self._idle: list[Connection] = []
        key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._headers = f"Host: {url.netloc}\r\n{key}"

    async def get(self, path: str) -> bytes:
        request = f"GET {self._path}{path} HTTP/1.1\r\n{self._headers}\r\n".encode()
        return b"".join([piece async for piece in self._stream(request)])

    async def post_events(self, path: str, body: dict[str, object]) -> AsyncIterator[bytes]:
        """POST JSON; yield the payload of every server-sent event up to `[DONE]`."""
        payload = msgspec.json.encode(body)
        head = (
            f"POST {self._path}{path} HTTP/1.1\r\n{self._headers}"
            f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
        )
        pending = b""
        async for piece in self._stream(head.encode() + payload):
            *events, pending = (pending + piece).replace(b"\r\n", b"\n").split(b"\n\n")
            for event in events:
                if event.startswith(b"data: ") and event != b"data: [DONE]":
                    yield event[6:]

    async def _stream(self, request: bytes) -> AsyncIterator[bytes]:
        connection = await self._connect()
        try:
            async for piece in connection.exchange(request):
                yield piece
        except (OSError, httptools.HttpParserError) as error:
            raise HttpError(f"connection lost: {error}") from error
        finally:
            if connection.reusable:
                self._idle.append(connection)
            else:
                connection.close()

    async def _connect(self) -> Connection:
        if self._idle:
            return self._idle.pop()
        try:
            return Connection(*await asyncio.open_connection(self._host, self._port, ssl=self._tls))
        except OSError as error:
            raise HttpError(f"cannot reach {self._host}:{self._port}: {error.strerror or error}") from error

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()
