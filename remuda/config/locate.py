"""From what the user calls a model to a directory on this machine. Nothing is ever downloaded."""

from __future__ import annotations

import os
import re
from pathlib import Path

from remuda.protocol.errors import ConfigError


def find_model(name: str) -> Path:
    """A checkpoint directory, or the local snapshot of a Hugging Face repository such as `meta-llama/Llama-...`.

    Raises:
        ConfigError: neither is there.
    """
    directory = Path(name).expanduser()
    if directory.is_dir():
        if not (directory / "config.json").is_file():
            raise ConfigError(f"{name} holds no config.json: give the directory of a Hugging Face checkpoint")
        return directory
    if directory.exists():
        raise ConfigError(f"{name} is a file: give the directory of a Hugging Face checkpoint")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and (snapshot := _cached_snapshot(name)):
        return snapshot
    raise ConfigError(
        f"model {name!r} is neither a directory here nor a repository in the Hugging Face cache at {_hub_cache()}; "
        "Remuda downloads nothing: fetch it first and give its directory"
    )


def _hub_cache() -> Path:
    """Where huggingface_hub keeps repositories, by its own environment variables."""
    if path := os.environ.get("HF_HUB_CACHE"):
        return Path(path)
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return Path(home) / "hub"


def _cached_snapshot(repository: str) -> Path | None:
    """The snapshot that `main` points to, else the one changed last; only complete enough to have a config.json."""
    folder = _hub_cache() / ("models--" + repository.replace("/", "--"))
    try:
        revision = (folder / "refs" / "main").read_text().strip()
    except OSError:
        revision = ""
    snapshots = sorted((p.parent for p in folder.glob("snapshots/*/config.json")), key=lambda p: p.stat().st_mtime)
    return next((p for p in snapshots if p.name == revision), snapshots[-1] if snapshots else None)
