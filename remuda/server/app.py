"""The ASGI application: routes, access, request ids, and errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Awaitable, Callable

from remuda.protocol.errors import NotFound, RemudaError, ShuttingDown
from remuda.server import info
from remuda.server.access import Cors, KeyCheck
from remuda.server.chat import chat_completions
from remuda.server.completions import completions
from remuda.server.errors import MethodNotAllowed, error_body, error_headers
from remuda.server.http import ClientGone, Exchange, Receive, Scope, Send
from remuda.server.service import Service

log = logging.getLogger("remuda.server")

Handler = Callable[[Service, Exchange], Awaitable[None]]

ROUTES: dict[str, dict[str, Handler]] = {
    "/v1/chat/completions": {"POST": chat_completions},
    "/v1/completions": {"POST": completions},
    "/v1/models": {"GET": info.models},
    "/tokenize": {"POST": info.tokenize},
    "/detokenize": {"POST": info.detokenize},
    "/health": {"GET": info.health},
    "/ping": {"GET": info.health, "POST": info.health},
    "/version": {"GET": info.version},
    "/load": {"GET": info.load},
    "/metrics": {"GET": info.metrics},
}
OPEN_PATHS = frozenset({"/health", "/ping", "/version", "/load", "/metrics"})  # need no API key
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")


class App:
    """Answers every request, whatever goes wrong: no exception reaches the server below."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._keys = KeyCheck(service.config.api_keys)
        self._cors = Cors(service.config)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1003})
            return
        exchange = Exchange(scope, receive, send)
        try:
            await self._answer(exchange)
        except ClientGone:
            pass
        except asyncio.CancelledError:  # uvicorn's drain has run out of patience: its log would show a traceback
            await self._fail(
                exchange, ShuttingDown("the server is shutting down and this request did not get anywhere")
            )
        except RemudaError as error:
            await self._fail(exchange, error)
        except Exception:
            log.exception("request %s failed", exchange.request_id)
            await self._fail(exchange, RemudaError("internal error; the server's log has the details"))

    async def _answer(self, exchange: Exchange) -> None:
        self._identify(exchange)
        origin = exchange.header(b"origin")
        if origin is not None:
            if exchange.method == "OPTIONS" and exchange.header(b"access-control-request-method"):
                await exchange.respond(b"", headers=self._cors.preflight(exchange, origin))
                return
            exchange.headers += self._cors.headers(origin)
        handler = self._route(exchange)
        if exchange.path not in OPEN_PATHS:
            self._keys.check(exchange)
        if self.service.draining and exchange.method == "POST":
            raise ShuttingDown("the server is shutting down; send the request to another one")
        await handler(self.service, exchange)

    def _identify(self, exchange: Exchange) -> None:
        """The client's X-Request-Id if it is harmless, else a fresh id; the answer carries it."""
        given = exchange.header(b"x-request-id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            exchange.request_id = given.decode()
        else:
            exchange.request_id = uuid.uuid4().hex
        if self.service.config.enable_request_id_headers:
            exchange.headers.append((b"x-request-id", exchange.request_id.encode()))

    def _route(self, exchange: Exchange) -> Handler:
        path = exchange.path
        methods = ROUTES.get(path)
        if methods is None and path.startswith("/v1/models/"):
            methods = {"GET": info.one_model}
        if methods is None:
            raise NotFound(f"there is no {path} here", code="unknown_path")
        method = "GET" if exchange.method == "HEAD" else exchange.method
        if method not in methods:
            raise MethodNotAllowed(f"{path} answers {' and '.join(methods)} only")
        return methods[method]

    async def _fail(self, exchange: Exchange, error: RemudaError) -> None:
        if exchange.started:
            log.error("request %s failed after its answer began: %s", exchange.request_id, error)
            return
        await exchange.respond(error_body(error), status=error.http_status, headers=error_headers(error))
