"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import re

import msgspec

from remuda.protocol.errors import InvalidRequest, QueueFull, RemudaError

Headers = list[tuple[bytes, bytes]]


class MethodNotAllowed(RemudaError):
    http_status = 405
    kind = "invalid_request_error"


class BodyTooLarge(RemudaError):
    http_status = 413
    kind = "invalid_request_error"


class BodyTooSlow(RemudaError):
    http_status = 408
    kind = "invalid_request_error"


def error_body(error: RemudaError) -> bytes:
    return msgspec.json.encode(
        {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}}
    )


def error_headers(error: RemudaError) -> Headers:
    if isinstance(error, QueueFull):
        return [(b"retry-after", str(error.retry_after_s).encode())]
    if error.http_status == 503:
        return [(b"retry-after", b"5")]
    if error.http_status == 401:
        return [(b"www-authenticate", b"Bearer")]
    return []


def from_validation(error: msgspec.DecodeError) -> InvalidRequest:
    """msgspec's message names the place as "... - at `$.field[...]`"; OpenAI's shape wants the field alone."""
    message = str(error)
    place = re.search(r"`\$\.(\w+)", message)
    param = place[1] if place else None
    if isinstance(error, msgspec.ValidationError):
        return InvalidRequest(f"invalid request: {message}", param=param)
    return InvalidRequest(f"the body is not valid JSON: {message}")
