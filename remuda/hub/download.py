"""A repository that is brought into the cache: what describes the model first, the rest when asked.

Files come in parallel, each by one request that takes up where an earlier one stopped, be it seconds or days ago:
bytes collect in blobs/DIGEST.incomplete and are checked against the hub's checksum before they get their name.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import BinaryIO, cast

from huggingface_hub.errors import HTTPError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import WeakFileLock, disable_progress_bars

from remuda.hub.cache import CONFIG, INDEX, RemoteFile, RepositoryCache, weight_files
from remuda.hub.progress import Progress, size
from remuda.hub.repository import Repository, disk_refusal, refusal
from remuda.protocol.errors import ConfigError

_DESCRIPTION = (CONFIG, "generation_config.json", "preprocessor_config.json", INDEX)
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_CONNECTIONS = 8
_MARGIN_BYTES = 64 << 20  # left free on the disk


class HubModel:
    """A model source whose directory is a snapshot in the cache. Making one brings the files that describe it."""

    def __init__(self, repository: Repository, cache: RepositoryCache) -> None:
        self._repository = repository
        self._cache = cache
        self.directory = cache.snapshot(repository.commit)
        if CONFIG not in repository.files:
            raise ConfigError(
                f"{repository.name} has no {CONFIG}: choose a repository in the layout of Hugging Face transformers"
            )
        self._fetch(_DESCRIPTION)

    def complete(self) -> None:
        try:
            weights = weight_files(self.directory)
        except ValueError as error:
            raise ConfigError(f"{self._repository.name}: {INDEX} is malformed ({error})") from None
        if missing := sorted(set(weights) - self._repository.files.keys()):
            raise ConfigError(
                f"{self._repository.name} has no {missing[0]}: choose a repository with weights in safetensors"
            )
        self._fetch([*_TOKENIZER, *weights], aloud=True)
        self._cache.point(self._repository.revision, self._repository.commit)

    def complete_tokenizer(self) -> None:
        self._fetch(_TOKENIZER)

    def _fetch(self, names: Iterable[str], *, aloud: bool = False) -> None:
        """Those of the files that the repository has and the snapshot lacks."""
        repository, cache = self._repository, self._cache
        files = [repository.files[name] for name in names if name in repository.files]
        missing = [file for file in files if not cache.holds(repository.commit, file)]
        if not missing:
            return
        total = sum(file.size for file in missing)
        there = sum(cache.bytes_there(repository.commit, file) for file in missing)
        check_space(cache.root, total - there)
        progress = Progress(total, len(missing), there, sys.stderr if aloud else io.StringIO())
        progress.line(
            f"{repository.name} at {repository.commit[:12]}: {len(missing)} files of {size(total)}"
            + (f", {size(there)} already there" if there else "")
            + f"\n  to {cache.root}"
        )
        _Transfer(repository, cache, progress).run(missing)
        progress.close()


def check_space(root: Path, needed: int) -> None:
    """Raise ConfigError if the disk under `root` (which need not exist yet) cannot take `needed` more bytes."""
    existing = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed + _MARGIN_BYTES > free:
        raise ConfigError(
            f"{size(needed)} are to be downloaded, but {size(free)} are free at {root}: free some, or give another "
            "place (--download-dir, HF_HOME)"
        )


class _Stopped(Exception):
    """Another file failed, or the user has had enough."""


class _Transfer:
    """Threads that bring files. They are daemons: whoever leaves need not wait for a slow server."""

    def __init__(self, repository: Repository, cache: RepositoryCache, progress: Progress) -> None:
        self._repository, self._cache, self._progress = repository, cache, progress
        self._stop = threading.Event()
        disable_progress_bars("huggingface_hub.http_get")

    def run(self, files: list[RemoteFile]) -> None:
        """Raises ConfigError for the first file that fails; what has come of the others stays."""
        todo: SimpleQueue[RemoteFile] = SimpleQueue()
        ended: SimpleQueue[Exception | None] = SimpleQueue()
        for file in files:
            todo.put(file)
        for _ in range(min(_CONNECTIONS, len(files))):
            threading.Thread(target=self._work, args=(todo, ended), daemon=True).start()
        try:
            for _ in files:
                if error := ended.get():
                    raise self._explained(error)
        except KeyboardInterrupt:
            self._progress.line("  interrupted; the same command goes on from here")
            raise
        finally:
            self._stop.set()

    def _work(self, todo: SimpleQueue[RemoteFile], ended: SimpleQueue[Exception | None]) -> None:
        with suppress(Empty):
            while not self._stop.is_set():
                file = todo.get_nowait()
                try:
                    self._bring(file)
                    ended.put(None)
                except Exception as error:
                    ended.put(error)

    def _bring(self, file: RemoteFile) -> None:
        cache, commit = self._cache, self._repository.commit
        blob = cache.blob(file)
        blob.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(cache.lock(file)):
            if not blob.exists() or blob.stat().st_size != file.size:
                self._download(file, cache.partial(file))
                os.replace(cache.partial(file), blob)
            cache.link(commit, file)
        self._progress.finished(file.name)

    def _download(self, file: RemoteFile, path: Path) -> None:
        repository = self._repository
        with PartialFile(path, file, self._progress, self._stop) as partial:
            http_get(
                repository.url(file), cast(BinaryIO, partial), resume_size=partial.tell(), headers=repository.headers(),
                expected_size=file.size,
            )  # fmt: skip
            if partial.digest() != file.digest:
                partial.truncate(0)
                raise ConfigError(
                    f"{file.name} of {repository.name} came with a wrong checksum and was thrown away: run the same "
                    "command again; if it happens again, check proxies and HF_ENDPOINT"
                )

    def _explained(self, error: Exception) -> Exception:
        if isinstance(error, HTTPError):
            return refusal(error, self._repository.name, self._repository.revision, self._repository.token)
        if isinstance(error, (OSError, ValueError)):  # ValueError: a file beyond what the hub gives by plain HTTP
            return disk_refusal(error, self._cache.root) or ConfigError(
                f"{self._repository.name} did not come whole ({str(error).splitlines()[0]}): run the same command "
                "again, which goes on where this stopped"
            )
        return error


class PartialFile(io.RawIOBase):
    """Bytes as they come, appended to what is there, summed on the way. Every byte written survives our death."""

    def __init__(self, path: Path, file: RemoteFile, progress: Progress, stop: threading.Event) -> None:
        self._file, self._progress, self._stop = file, progress, stop
        self._raw = path.open("a+b", buffering=0)
        if self._raw.tell() > file.size:
            self._raw.truncate(0)
        self._sum = self._fresh_sum()
        self._raw.seek(0)
        while block := self._raw.read(8 << 20):
            self._sum.update(block)

    def _fresh_sum(self) -> hashlib._Hash:
        if len(self._file.digest) == 64:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self._file.size)  # as git sums a file

    def digest(self) -> str:
        return self._sum.hexdigest()

    def write(self, data: bytes) -> int:  # type: ignore[override]
        if self._stop.is_set():
            raise _Stopped
        view = memoryview(data)
        while view:  # an unbuffered write may take less
            view = view[self._raw.write(view) :]
        self._sum.update(data)
        self._progress.advance(len(data))
        return len(data)

    def tell(self) -> int:
        return self._raw.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """To the beginning, followed by `truncate`: the only way back, taken when a server cannot resume."""
        assert offset == 0 and whence == os.SEEK_SET
        return self._raw.seek(0)

    def truncate(self, size: int | None = None) -> int:
        self._progress.advance(-os.fstat(self._raw.fileno()).st_size)
        self._sum = self._fresh_sum()
        return self._raw.truncate(0)

    def close(self) -> None:
        with suppress(OSError):
            self._raw.close()
        super().close()
