"""What `remuda serve NAME` means: a directory here, the embedded demo model, or a repository of the Hugging Face Hub.

A source has its `directory` at once, with at least the small files that describe the model; `complete()` brings the
rest. Between the two a caller decides whether the model can be served, so that nobody waits hours for a refusal.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Protocol

from remuda.protocol.errors import ConfigError

DEMO_MODEL = "remuda-demo"
MODEL_HELP = f"checkpoint directory, repository of the Hugging Face Hub, or {DEMO_MODEL} (the default)"
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


@dataclass(frozen=True)
class HubOptions:
    """How to ask the hub; None leaves it to huggingface_hub and its environment variables. Keys as the flags'."""

    revision: str | None = None  # branch, tag or commit; None: main
    download_dir: str | None = None  # the cache's root; None: HF_HUB_CACHE, HF_HOME/hub
    hf_token: str | None = None  # None: HF_TOKEN, or what `hf auth login` stored


class ModelSource(Protocol):
    """A checkpoint directory that may still lack its large files."""

    @property
    def directory(self) -> Path: ...

    def complete(self) -> None:
        """Bring every file that serving needs. Raises ConfigError saying what to do."""

    def complete_tokenizer(self) -> None:
        """Bring the tokenizer's files alone."""


@dataclass(frozen=True)
class LocalModel:
    """Nothing is missing, or at least nothing that anyone could bring."""

    directory: Path

    def complete(self) -> None:
        pass

    def complete_tokenizer(self) -> None:
        pass


def find_model(name: str | None, options: HubOptions | None = None) -> ModelSource:
    """The source of a model; None is the embedded demo model. A directory goes before a repository of that name.

    Raises:
        ConfigError: there is none, the hub refuses, or `options` do not apply.
    """
    options = options or HubOptions()
    if name is not None and _REPOSITORY.fullmatch(name) and not Path(name).exists():
        return _hub_model(name, options)
    for field in fields(options):
        if getattr(options, field.name) is not None:
            flag = "--" + field.name.replace("_", "-")
            raise ConfigError(f"{flag} is for repositories of the Hugging Face Hub; {name or DEMO_MODEL} is local")
    return LocalModel(_local_directory(name))


def _local_directory(name: str | None) -> Path:
    directory = Path(name or DEMO_MODEL).expanduser()
    if name in (None, DEMO_MODEL) and not (name and directory.is_dir()):
        return Path(str(files("remuda"))) / "assets" / "demo"
    if directory.is_dir():
        if not (directory / "config.json").is_file():
            raise ConfigError(f"{name} holds no config.json: give the directory of a Hugging Face checkpoint")
        return directory
    if directory.exists():
        raise ConfigError(f"{name} is a file: give the directory of a Hugging Face checkpoint")
    raise ConfigError(
        f"there is no directory {name}: give one, a repository of the Hugging Face Hub as ORGANISATION/NAME, "
        f"or {DEMO_MODEL}"
    )


def _hub_model(name: str, options: HubOptions) -> ModelSource:
    """From the cache alone where that is all that may be asked or all that can be known, else by the hub's word."""
    from huggingface_hub import constants

    from remuda.hub.cache import RepositoryCache, is_commit
    from remuda.hub.download import HubModel
    from remuda.hub.repository import HubRefusal, Repository

    cache = RepositoryCache(Path(options.download_dir or constants.HF_HUB_CACHE).expanduser(), name)
    snapshot = cache.complete_snapshot(options.revision)
    if snapshot and (constants.HF_HUB_OFFLINE or is_commit(options.revision)):
        return LocalModel(snapshot)
    if constants.HF_HUB_OFFLINE:
        at = f" at revision {options.revision}" if options.revision else ""
        raise ConfigError(
            f"{name}{at} is not complete in the cache at {cache.root}, and HF_HUB_OFFLINE is set: unset it, or give "
            "the directory of a checkpoint"
        )
    try:
        return HubModel(Repository.ask(name, options.revision, options.hf_token), cache)
    except HubRefusal as refusal:
        if snapshot is None or not refusal.passing:
            raise
        print(f"remuda: {refusal.message}\n  the copy in the cache is used: {snapshot}", file=sys.stderr)
        return LocalModel(snapshot)
