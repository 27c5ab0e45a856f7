"""huggingface_hub's cache of one repository: what is complete in it, and how a downloaded file gets its place.

    models--ORG--NAME/blobs/DIGEST                a file's bytes, under the name of their checksum
    models--ORG--NAME/snapshots/COMMIT/FILE       a link to the bytes
    models--ORG--NAME/refs/REVISION               the commit that a branch or tag stood for
    .locks/models--ORG--NAME/DIGEST.lock          held while these bytes are brought

What transformers or vLLM downloaded is found here, and the other way round.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

CONFIG, INDEX, SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository at one commit. `digest` is SHA-256 of large files, git's blob id (SHA-1) of others."""

    name: str
    size: int
    digest: str


def is_commit(revision: str | None) -> bool:
    return revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision) is not None


class RepositoryCache:
    """`root` holds the repositories; nothing is made on disk before there is something to write."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root
        folder = "models--" + name.replace("/", "--")
        self._folder = root / folder
        self._locks = root / ".locks" / folder

    def snapshot(self, commit: str) -> Path:
        return self._folder / "snapshots" / commit

    def complete_snapshot(self, revision: str | None) -> Path | None:
        """A snapshot of `revision` (None: main, else the one changed last) with config, tokenizer and all weights."""
        if is_commit(revision):
            candidates = [self.snapshot(str(revision))]
        else:
            try:
                candidates = [self.snapshot((self._folder / "refs" / (revision or "main")).read_text().strip())]
            except OSError:
                candidates = []
            if revision is None:
                changed = {path: path.stat().st_mtime for path in self._folder.glob("snapshots/*")}
                candidates += sorted(changed, key=changed.__getitem__, reverse=True)
        return next((path for path in candidates if _is_complete(path)), None)

    def holds(self, commit: str, file: RemoteFile) -> bool:
        return _size(self.snapshot(commit) / file.name) == file.size

    def blob(self, file: RemoteFile) -> Path:
        return self._folder / "blobs" / file.digest

    def partial(self, file: RemoteFile) -> Path:
        """Where bytes collect until they are all there; stays after a break."""
        return self._folder / "blobs" / f"{file.digest}.incomplete"

    def bytes_there(self, commit: str, file: RemoteFile) -> int:
        """How much of it need not be downloaded."""
        if self.holds(commit, file) or _size(self.blob(file)) == file.size:
            return file.size
        there = _size(self.partial(file))
        return there if 0 < there <= file.size else 0

    def lock(self, file: RemoteFile) -> Path:
        self._locks.mkdir(parents=True, exist_ok=True)
        return self._locks / f"{file.digest}.lock"

    def link(self, commit: str, file: RemoteFile) -> None:
        """Show the bytes of a blob as a file of the snapshot."""
        pointer, blob = self.snapshot(commit) / file.name, self.blob(file)
        pointer.parent.mkdir(parents=True, exist_ok=True)
        pointer.unlink(missing_ok=True)
        try:
            pointer.symlink_to(os.path.relpath(blob, pointer.parent))
        except OSError:  # a file system without links
            os.replace(blob, pointer)

    def point(self, revision: str, commit: str) -> None:
        """Remember which commit a branch or tag stood for, once its snapshot is complete."""
        if is_commit(revision):
            return
        ref = self._folder / "refs" / revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        fresh = ref.with_name(f"{ref.name}.{os.getpid()}")
        fresh.write_text(commit)
        os.replace(fresh, ref)


def weight_files(snapshot: Path) -> list[str]:
    """Names of the safetensors files that belong to the model, by its index where it has one. Raises ValueError."""
    index = snapshot / INDEX
    if not index.is_file():
        return [SINGLE]
    try:
        return sorted({str(name) for name in json.loads(index.read_bytes())["weight_map"].values()})
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from error


def _is_complete(snapshot: Path) -> bool:
    try:
        needed = [CONFIG, "tokenizer.json", *weight_files(snapshot)]
    except ValueError:
        return False
    return all((snapshot / name).is_file() for name in needed)


def _size(path: Path) -> int:
    """-1 where there is nothing."""
    try:
        return path.stat().st_size
    except OSError:
        return -1
