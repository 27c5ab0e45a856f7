"""A pure-Python wheel, installed where nothing of this repository is, serves, answers and is evaluated."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import urllib.request
import zipfile
from email.parser import Parser
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.e2e.server import free_port
from tests.processes import wait_until

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
"""Variables of a user, whom nothing leads into this repository."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, so that the working tree gets no build folder."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "remuda", source / "remuda", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    subprocess.run(command, cwd=source, check=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_is_pure_and_holds_every_source_and_asset(wheel: Path) -> None:
    files = zipfile.ZipFile(wheel).infolist()
    names = {file.filename for file in files}
    assert wheel.name.endswith("-py3-none-any.whl")
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "remuda").rglob("*") if path.is_file()}
    sources = {name for name in package if "__pycache__" not in name and not name.endswith(".so")}
    assert {name for name in names if ".dist-info/" not in name} == sources
    assert len(sources) > 250
    assert 30e6 < sum(file.file_size for file in files if "assets/demo/" in file.filename) < 40e6
    assert wheel.stat().st_size < 60e6


def closure(requirements: list[str], extra: str = "") -> set[str]:
    """Names of the installed distributions that `requirements` ask for, and that those ask for in turn."""
    found: set[str] = set()
    for requirement in map(Requirement, requirements):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            found |= {requirement.name} | closure(distribution(requirement.name).requires or [])
            for wanted in requirement.extras:
                found |= closure(distribution(requirement.name).requires or [], wanted)
    return found


def empty_environment(folder: Path, wheel: Path) -> Path:
    """A virtual environment with what the wheel declares and nothing else: no test dependency fills a gap."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    show = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", show], capture_output=True, text=True, check=True).stdout.strip()
    with zipfile.ZipFile(wheel) as file:
        (metadata,) = [name for name in file.namelist() if name.endswith(".dist-info/METADATA")]
        declared = Parser().parsestr(file.read(metadata).decode()).get_all("Requires-Dist", [])
    for name in closure(declared):
        files = distribution(name).files or []
        for top in {path.parts[0] for path in files} - {"..", "__pycache__"}:
            link = Path(site, top)
            if not link.exists():  # parts of one namespace may come from several distributions
                link.symlink_to(Path(sysconfig.get_path("purelib"), top))
    return python


def test_it_serves_from_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    python = empty_environment(tmp_path / "venv", wheel)
    missing = subprocess.run([python, "-c", "import pytest"], capture_output=True)
    assert missing.returncode != 0, "the environment is not empty"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*install, "--ignore-installed", str(wheel)], check=True)
    remuda = python.with_name("remuda")
    where = subprocess.run(
        [python, "-c", "import remuda; print(remuda.__file__)"],
        cwd=tmp_path,
        env=OUTSIDE,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert str(tmp_path) in where
    port = free_port()
    environment = OUTSIDE | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    log = (tmp_path / "log").open("w")
    server = subprocess.Popen(
        [remuda, "serve", "--host", "127.0.0.1", "--port", str(port), "--max-model-len", "1024",
         "--native-kernels", "off"],
        cwd=tmp_path, env=environment, stdout=log, stderr=log,
    )  # fmt: skip
    try:
        wait_until(lambda: healthy(port) or server.poll() is not None, 120, "server start")
        assert server.poll() is None, (tmp_path / "log").read_text()
        body = json.dumps({"messages": [{"role": "user", "content": "What is 12 + 30?"}]})
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/chat/completions", body.encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert answer["choices"][0]["message"]["content"] == "12 + 30 = 42"  # the demo model, which is the default
        asked = ["--skills", "arithmetic", "--num-problems", "2"]
        command = [remuda, "eval", "--base-url", f"http://127.0.0.1:{port}", *asked]
        table = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        ).stdout
        assert "arithmetic" in table
    finally:
        server.terminate()
        assert server.wait(30) == 0
        log.close()


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False
