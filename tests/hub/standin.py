"""A local stand-in of the hub's HTTP API: repositories at commits, ranges, tokens, and how a hub fails."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "5a" * 20
_LARGE = 4096  # bytes from which a file is "LFS": summed with SHA-256


@dataclass
class Repo:
    """Files of one commit. `token` opens what is gated or private."""

    files: dict[str, bytes]
    gated: bool = False
    private: bool = False
    token: str = "hf_good"
    commits: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})


def repo_of(directory: Path, **others: bytes) -> Repo:
    return Repo({path.name: path.read_bytes() for path in directory.iterdir()} | others)


class Hub:
    """What is served, what went wrong on purpose, and what was asked."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[str] = []  # "GET /path" or "GET /path bytes=5-"; not those that are redirected
        self.cut_after: dict[str, int] = {}  # file -> bytes after which its next answer breaks off
        self.corrupt: set[str] = set()  # files of which one byte is wrong
        self.short: set[str] = set()  # files that are one byte shorter than promised
        self.stall: set[str] = set()  # files whose answer stops half-way until `release`
        self.status: int | None = None  # answers of the API
        self.release = threading.Event()
        self.stalled = threading.Event()
        self.url = ""

    def asked(self, name: str) -> list[str]:
        return [request for request in self.requests if name in request]


@contextmanager
def running() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        hub.release.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[0] == "api" and parts[1] != "models":  # whatever else the library likes to know
            self._refuse(404, "")
        elif parts[0] == "api":
            self._describe("/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main")
        elif parts[0] == "cdn":
            self._deliver("/".join(parts[1:3]), parts[-1])
        else:
            self._resolve("/".join(parts[:2]), "/".join(parts[4:]))

    def _record(self) -> None:
        wanted = self.headers.get("Range")
        self.hub.requests.append(f"{self.command} {self.path.split('?')[0]}" + (f" {wanted}" if wanted else ""))

    def _allowed(self, repo: Repo | None) -> bool:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if repo is None or (repo.private and token != repo.token):
            self._refuse(404 if token else 401, "RepoNotFound")
            return False
        return True

    def _describe(self, name: str, revision: str) -> None:
        self._record()
        repo = self.hub.repos.get(name)
        if self.hub.status:
            self._refuse(self.hub.status, "")
        elif self._allowed(repo):
            assert repo is not None
            commit = repo.commits.get(revision) or (revision if revision in repo.commits.values() else None)
            if commit is None:
                self._refuse(404, "RevisionNotFound")
                return
            siblings = [self._sibling(file, data) for file, data in repo.files.items()]
            body = json.dumps({"id": name, "sha": commit, "private": repo.private, "siblings": siblings}).encode()
            self._answer(200, body, {"Content-Type": "application/json"})

    @staticmethod
    def _sibling(file: str, data: bytes) -> dict[str, object]:
        entry: dict[str, object] = {"rfilename": file, "size": len(data), "blobId": git_digest(data)}
        if len(data) >= _LARGE:
            entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry

    def _resolve(self, name: str, file: str) -> None:
        repo = self.hub.repos.get(name)
        if not self._allowed(repo):
            return
        assert repo is not None
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if repo.gated and token != repo.token:
            self._refuse(403 if token else 401, "GatedRepo")
        elif file not in repo.files:
            self._refuse(404, "EntryNotFound")
        elif len(repo.files[file]) >= _LARGE:  # large files come from another host
            elsewhere = self.hub.url.replace("127.0.0.1", "localhost")
            self._answer(302, b"", {"Location": f"{elsewhere}/cdn/{name}/{file}"})
        else:
            self._send_file(file, repo.files[file])

    def _deliver(self, name: str, file: str) -> None:
        """The other host: the token is none of its business."""
        if "Authorization" in self.headers:
            self._refuse(400, "")
        else:
            self._send_file(file, self.hub.repos[name].files[file])

    def _send_file(self, file: str, data: bytes) -> None:
        self._record()
        hub, start, headers = self.hub, 0, {"ETag": f'"{digest(data)}"', "X-Repo-Commit": COMMIT}
        if file in hub.corrupt:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if file in hub.short:
            data = data[:-1]
        if wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        stop = len(data)
        if file in hub.stall:
            stop = max(start, len(data) // 2)
        elif file in hub.cut_after:
            stop = hub.cut_after.pop(file)
        self._answer(206 if wanted else 200, data[start:], headers, stop - start)
        if stop < len(data):
            self.wfile.flush()
            if file in hub.stall:
                hub.stalled.set()
                hub.release.wait(30)
            self.close_connection = True

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, b"", {"X-Error-Code": code} if code else {})

    def _answer(self, status: int, body: bytes, headers: dict[str, str], send: int | None = None) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:send])


def git_digest(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if len(data) >= _LARGE else git_digest(data)
