"""file: and http: image URLs: only where allowed, never beyond a limit."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from remuda.protocol.errors import InvalidRequest
from remuda.server.config import ServerConfig
from remuda.server.media import MediaLoader


def load(url: str, **config: object) -> bytes:
    return asyncio.run(MediaLoader(ServerConfig(**config)).load(url))  # type: ignore[arg-type]


class Files(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/away":
            self.send_response(302)
            self.send_header("location", "http://localhost:1/elsewhere")
        elif self.path == "/loop":
            self.send_response(302)
            self.send_header("location", "/loop")
        elif self.path == "/moved":
            self.send_response(302)
            self.send_header("location", "/image")
        elif self.path == "/hang":
            self.server.hang.wait(20)  # type: ignore[attr-defined]
            self.send_response(200)
        else:
            self.send_response(200 if self.path in ("/image", "/big") else 404)
        self.end_headers()
        self.wfile.write(b"x" * (1000 if self.path == "/big" else 10))

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    server.hang = threading.Event()  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.hang.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


def test_allowed_hosts_are_fetched(host: str) -> None:
    assert load(host + "/image", allowed_media_domains=("127.0.0.1",)) == b"x" * 10
    assert load(host + "/moved", allowed_media_domains=("127.0.0.1",)) == b"x" * 10


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/away", "'localhost' are not allowed"), ("/loop", "too many redirects"), ("/missing", "status 404"),
        ("/big", "exceeds 500 bytes"), ("/hang", "TimeoutError"),
    ],
)  # fmt: skip
def test_fetching_is_bounded(host: str, path: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        load(
            host + path,
            allowed_media_domains=("127.0.0.1",),
            max_media_bytes=500,
            media_timeout_s=0.5 if path == "/hang" else 30.0,
        )


def test_other_hosts_are_not_fetched(host: str) -> None:
    for url in (host + "/image", "http://user@evil:x/", "http://[", "https://127.0.0.1.evil.example/"):
        with pytest.raises(InvalidRequest):
            load(url, allowed_media_domains=("images.example",))


def test_files_below_the_allowed_directory(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (allowed / "a b.png").write_bytes(b"pixels")
    (tmp_path / "secret").write_bytes(b"secret")
    (allowed / "link").symlink_to(tmp_path / "secret")
    assert load(f"file://{allowed}/a%20b.png", allowed_local_media_path=str(allowed)) == b"pixels"
    for path in ("link", "../secret", "%2e%2e/secret", "missing", ".", "a%00b"):
        with pytest.raises(InvalidRequest):
            load(f"file://{allowed}/{path}", allowed_local_media_path=str(allowed))
    with pytest.raises(InvalidRequest, match="name a host"):
        load(f"file://other{allowed}/a%20b.png", allowed_local_media_path=str(allowed))
    with pytest.raises(InvalidRequest, match="exceeds 3 bytes"):
        load(f"file://{allowed}/a%20b.png", allowed_local_media_path=str(allowed), max_media_bytes=3)
