"""The one-way rule: a folder imports only folders below it, and the control plane never imports torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "remuda"

# Which folders each folder may import (beside itself).
BELOW: dict[str, set[str]] = {"protocol": set(), "kv": {"protocol"}, "config": {"kv", "protocol"}}
BELOW["text"] = BELOW["metrics"] = {"config", "kv", "protocol"}
_base = {"text", "metrics", "config", "kv", "protocol"}
BELOW["parallel"] = BELOW["weights"] = BELOW["kernels"] = _base
BELOW["layers"] = _base | {"kernels", "weights", "parallel"}
BELOW["models"] = BELOW["layers"] | {"layers"}
BELOW["planner"] = BELOW["tiny"] = BELOW["models"] | {"models"}
BELOW["worker"] = BELOW["planner"] | {"planner"}
BELOW["engine"] = _base | {"parallel"}
BELOW["executor"] = BELOW["worker"] | {"worker", "engine"}
BELOW["server"] = BELOW["engine"] | {"engine"}
BELOW["hub"] = {"protocol"}
BELOW["launch"] = BELOW["executor"] | BELOW["server"] | {"executor", "server", "hub"}
BELOW["evaluation"] = _base
BELOW["cli"] = BELOW["llm"] = set(BELOW) | {"cli", "llm"}

TORCH_FREE = (
    "protocol", "kv", "config", "planner", "text", "metrics", "layers", "models", "engine", "server", "launch", "hub",
)  # fmt: skip
TORCH_FREE_MODULES = (
    "remuda",
    "remuda.kernels.select",
    "remuda.parallel.topology",
    "remuda.executor.multiproc",
    "remuda.cli.main",
)


def imports_of(path: Path) -> set[str]:
    """Top-level remuda folders (or modules) that a file imports, lazily or not."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module] if node.module != "remuda" else [f"remuda.{a.name}" for a in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("remuda.")}
    return found


@pytest.mark.parametrize("folder", sorted(BELOW))
def test_folder_imports_only_what_lies_below(folder: str) -> None:
    paths = [ROOT / f"{folder}.py"] if folder == "llm" else sorted((ROOT / folder).rglob("*.py"))
    assert paths
    for path in paths:
        above = imports_of(path) - BELOW[folder] - {folder} - {"__version__", "_version"}
        assert not above, f"{path.relative_to(ROOT)} imports {sorted(above)}"


def test_every_folder_has_a_place_in_the_rule() -> None:
    folders = {p.name for p in ROOT.iterdir() if any(p.rglob("*.py"))}  # assets/ holds data only
    assert folders <= set(BELOW)


def modules_of(folder: str) -> list[str]:
    paths = (ROOT / folder).rglob("*.py")
    return [".".join(p.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__") for p in paths]


def test_the_control_plane_never_imports_torch() -> None:
    modules = [m for folder in TORCH_FREE for m in modules_of(folder)] + list(TORCH_FREE_MODULES)
    code = f"import importlib, sys\nfor m in {modules}: importlib.import_module(m)\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
