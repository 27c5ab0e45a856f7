"""data: URLs (RFC 2397): bytes that travel inside their own address."""

from __future__ import annotations

import base64
import binascii
from urllib.parse import unquote, unquote_to_bytes

from remuda.protocol.errors import InvalidRequest

MAX_MEDIA_BYTES = 32 << 20


def read_data_url(url: str, limit: int = MAX_MEDIA_BYTES) -> bytes:
    """The bytes; raises InvalidRequest if it is no data: URL, is malformed, or holds more than `limit` bytes."""
    header, comma, payload = url.partition(",")
    if header[:5].lower() != "data:" or not comma:
        raise InvalidRequest("an image URL must be a data: URL with a comma before its data", param="messages")
    if len(payload) > 4 * limit:  # even percent-encoded it cannot be within the limit
        raise InvalidRequest(f"the image exceeds {limit} bytes", param="messages")
    try:
        if header.endswith(";base64"):
            data = base64.b64decode(unquote(payload) if "%" in payload else payload, validate=True)
        else:
            data = unquote_to_bytes(payload)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"the data: URL is not valid base64: {error}", param="messages") from error
    if len(data) > limit:
        raise InvalidRequest(f"the image exceeds {limit} bytes", param="messages")
    return data
