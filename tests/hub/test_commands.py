"""The commands as a user types them, in processes that know the stand-in by HF_ENDPOINT."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.server import serve
from tests.hub.standin import COMMIT, Hub, Repo, repo_of, running

SMALL = ("--max-model-len", "64", "--native-kernels", "off", "--kv-cache-memory-bytes", "4M")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        yield hub


def remuda(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "remuda", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | environment)


def test_serve_a_gated_repository_then_generate_offline(
    hub: Hub, tiny_maverick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos["org/tiny-model"] = repo_of(tiny_maverick, **{"pytorch_model.bin": b"x" * 100})
    hub.repos["org/tiny-model"].gated = True
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    with serve(tmp_path / "log", "org/tiny-model", *SMALL) as server:
        body = json.dumps({"model": "org/tiny-model", "prompt": "a", "max_tokens": 2}).encode()
        headers = {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(f"{server.url}/v1/completions", body, headers)) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == 2
        assert f"org/tiny-model at {COMMIT[:12]}: " in server.output
        assert "\r" not in server.output  # no terminal: plain lines
    assert not hub.asked("pytorch_model.bin")
    assert (tmp_path / "home/hub/models--org--tiny-model/refs/main").read_text() == COMMIT
    hub.requests.clear()
    done = remuda("generate", "org/tiny-model", "--prompt", "a", "--max-tokens", "2", *SMALL, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert not hub.requests and "MiB" not in done.stderr


def test_an_interrupted_download_ends_with_130_and_goes_on(hub: Hub, tmp_path: Path) -> None:
    weights = b"0123456789abcdef" * (1 << 20)
    config = Path(__file__).parent.parent.parent / "remuda/assets/demo/config.json"
    hub.repos["org/model"] = Repo({"config.json": config.read_bytes(), "model.safetensors": weights})
    hub.stall.add("model.safetensors")
    process = subprocess.Popen(
        [sys.executable, "-m", "remuda", "serve", "org/model", "--download-dir", str(tmp_path / "cache")],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert hub.stalled.wait(30)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.endswith("interrupted; the same command goes on from here\n")
    assert list((tmp_path / "cache").rglob("*.incomplete"))


def test_a_refusal_is_one_line_and_exit_code_1(hub: Hub) -> None:
    done = remuda("serve", "org/missing", HF_TOKEN="hf_any")
    assert done.returncode == 1
    assert done.stderr == (
        f"remuda: org/missing is neither a directory here nor a repository at {hub.url} that you may see: check the "
        "name; for a private one set HF_TOKEN, give --hf-token, or run `hf auth login`\n"
    )
