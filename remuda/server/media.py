"""Bytes behind an image URL: data: always, file: and http(s): only where the operator allows it, all size-bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from remuda.protocol.errors import InvalidRequest
from remuda.server.config import ServerConfig
from remuda.text.data_url import read_data_url

_MAX_REDIRECTS = 5


class MediaLoader:
    """Raises InvalidRequest for every URL that cannot or must not be read."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config

    async def load(self, url: str) -> bytes:
        scheme = url.partition(":")[0].lower()
        if scheme == "data":
            return read_data_url(url, self._config.max_media_bytes)
        if scheme == "file":
            return self._file(url)
        if scheme in ("http", "https"):
            return await self._fetch(url)
        raise _refused("image URLs must begin with data:, or file:, http: or https: where the server allows them")

    def _file(self, url: str) -> bytes:
        allowed = self._config.allowed_local_media_path
        if allowed is None:
            raise _refused("file: URLs are not allowed; the operator can set --allowed-local-media-path")
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise _refused("a file: URL must not name a host")
        root = Path(allowed).resolve()
        try:
            path = Path(unquote(parts.path)).resolve()
            if not path.is_relative_to(root):
                raise _refused("the file: URL is outside --allowed-local-media-path")
            if not path.is_file():
                raise _refused("the file: URL names no readable file")
            with path.open("rb") as file:
                data = file.read(self._config.max_media_bytes + 1)
        except (OSError, ValueError) as error:
            if isinstance(error, InvalidRequest):
                raise
            raise _refused("the file: URL names no readable file") from error
        if len(data) > self._config.max_media_bytes:
            raise self._too_large()
        return data

    async def _fetch(self, url: str) -> bytes:
        """Redirects are followed by hand, so that every hop is checked against the allowed hosts."""
        self._check_host(url)
        import httpx  # slow to import, and most servers never fetch

        try:
            async with (
                asyncio.timeout(self._config.media_timeout_s),
                httpx.AsyncClient(timeout=None, follow_redirects=False, trust_env=False) as client,
            ):
                for _ in range(_MAX_REDIRECTS + 1):
                    self._check_host(url)
                    async with client.stream("GET", url) as response:
                        if response.is_redirect:
                            url = urljoin(url, response.headers["location"])
                            continue
                        if response.status_code != 200:
                            raise _refused(f"fetching the image failed with status {response.status_code}")
                        return await self._read(response.aiter_bytes())
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, TimeoutError) as error:
            raise _refused(f"fetching the image failed: {type(error).__name__}") from error
        raise _refused("fetching the image failed: too many redirects")

    async def _read(self, parts: AsyncIterator[bytes]) -> bytes:
        data = bytearray()
        async for part in parts:
            data += part
            if len(data) > self._config.max_media_bytes:
                raise self._too_large()
        return bytes(data)

    def _check_host(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            host = parts.hostname
        except ValueError as error:
            raise _refused(f"the image URL is not valid: {error}") from error
        if parts.scheme not in ("http", "https") or host not in self._config.allowed_media_domains:
            raise _refused(f"images from host {host!r} are not allowed; the operator can set --allowed-media-domains")

    def _too_large(self) -> InvalidRequest:
        return _refused(f"the image exceeds {self._config.max_media_bytes} bytes")


def _refused(message: str) -> InvalidRequest:
    return InvalidRequest(message, param="messages")
