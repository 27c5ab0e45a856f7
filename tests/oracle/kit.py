"""Checkpoints and reference answers of the oracle kit, made once per machine and kept in a cache folder."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.oracle.conftest import KIT

CACHE = Path(tempfile.gettempdir()) / f"remuda-oracle-{os.getuid()}"


def _run(script: str, *arguments: str) -> None:
    command = [sys.executable, str(KIT / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=_environment())
    assert done.returncode == 0, done.stderr[-2000:]


def _environment() -> dict[str, str]:
    """The oracle's image processor needs torchvision's Python code; this project does not, so it is kept apart."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if importlib.util.find_spec("torchvision") is not None:
        return environment
    folder = CACHE / "torchvision"
    if not folder.is_dir():
        partial = folder.with_suffix(f".{os.getpid()}")
        install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(partial)]
        subprocess.run([*install, "torchvision==0.28.0"], check=True)
        with suppress(OSError):  # another test process was first
            partial.rename(folder)
    return environment | {"PYTHONPATH": str(folder)}


def prompts(preset: str) -> list[dict[str, Any]]:
    items = json.loads((KIT / "prompts_example.json").read_text())
    return [item for item in items if not (preset == "llama3-tiny" and item["id"].startswith("image"))]


def checkpoint(preset: str) -> Path:
    path = CACHE / preset
    if not (path / "complete").exists():
        _run("make_checkpoint.py", preset, str(path))
        (path / "complete").touch()
    return path


def reference(preset: str, *options: str) -> dict[str, dict[str, Any]]:
    """Results of the oracle by prompt id: float32, no KV cache, eager attention."""
    items = json.dumps(prompts(preset))
    key = hashlib.sha256("|".join((items, *options)).encode()).hexdigest()[:12]
    out = CACHE / f"{preset}-{key}.json"
    if not out.exists():
        path = checkpoint(preset)
        asked, partial = CACHE / f"prompts-{preset}-{key}.json", out.with_suffix(f".{os.getpid()}")
        asked.write_text(items)
        _run("oracle.py", str(path), str(asked), "--out", str(partial), *options)
        partial.rename(out)
    return {result["id"]: result for result in json.loads(out.read_text())["results"]}


def _synth_image() -> Any:
    spec = importlib.util.spec_from_file_location("synth_image", KIT / "synth_image.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def openai_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The kit's chat format -> OpenAI's, synthetic images as data: URLs."""
    synth = _synth_image()

    def part(p: dict[str, Any]) -> dict[str, Any]:
        if p["type"] != "image":
            return p
        data = base64.b64encode(synth.png_bytes(p["synthetic"])).decode()
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}

    def message(m: dict[str, Any]) -> dict[str, Any]:
        content = m["content"]
        return m | {"content": content if isinstance(content, str) else [part(p) for p in content]}

    return [message(m) for m in messages]
