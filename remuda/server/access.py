"""Who may call, and from which web page: API keys and CORS."""

from __future__ import annotations

import hashlib
import hmac

from remuda.protocol.errors import Unauthorized
from remuda.server.config import ServerConfig
from remuda.server.errors import Headers
from remuda.server.http import Exchange


class KeyCheck:
    """Bearer tokens, compared in constant time."""

    def __init__(self, api_keys: tuple[str, ...]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in api_keys]

    def check(self, exchange: Exchange) -> None:
        """Raise Unauthorized unless a key is given, or none is asked for."""
        if not self._digests:
            return
        scheme, _, key = (exchange.header(b"authorization") or b"").partition(b" ")
        given = hashlib.sha256(key.strip()).digest()
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() != b"bearer" or not any(matches):
            raise Unauthorized("a valid API key is needed: Authorization: Bearer KEY", code="invalid_api_key")


class Cors:
    """Cross-origin headers, for browsers that ask."""

    def __init__(self, config: ServerConfig) -> None:
        self._origins = {origin.encode() for origin in config.allowed_origins}
        self._any_origin = b"*" in self._origins
        self._methods = ", ".join(config.allowed_methods).replace("*", "GET, POST, OPTIONS").encode()
        self._headers = None if "*" in config.allowed_headers else ", ".join(config.allowed_headers).encode()
        self._credentials = config.allow_credentials

    def headers(self, origin: bytes) -> Headers:
        """For an answer to a page of `origin`; none if that page may not read it."""
        if not self._any_origin and origin not in self._origins:
            return []
        # A wildcard is not allowed together with credentials.
        wildcard = self._any_origin and not self._credentials
        found = [(b"access-control-allow-origin", b"*" if wildcard else origin)]
        if not wildcard:
            found.append((b"vary", b"origin"))
        if self._credentials:
            found.append((b"access-control-allow-credentials", b"true"))
        return found

    def preflight(self, exchange: Exchange, origin: bytes) -> Headers:
        """For the OPTIONS request that asks whether the real one would be allowed."""
        headers = self.headers(origin)
        if not headers:
            return []
        asked = exchange.header(b"access-control-request-headers") or b"authorization, content-type"
        allowed = asked if self._headers is None else self._headers
        return [
            *headers,
            (b"access-control-allow-methods", self._methods),
            (b"access-control-allow-headers", allowed),
            (b"access-control-max-age", b"600"),
        ]
