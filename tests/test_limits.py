"""The limits of CONTRIBUTING: a file has at most 500 lines, a function fits one screen."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("remuda", "training", "benchmarks", "examples", "tests")
FILE_LINES, SCREEN_LINES = 500, 50


def sources(*suffixes: str) -> Iterator[Path]:
    for folder in FOLDERS:
        yield from (path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)


def longest_first(lengths: dict[str, int], limit: int) -> list[str]:
    return [f"{name}: {lines} lines" for name, lines in sorted(lengths.items(), key=lambda x: -x[1]) if lines > limit]


def test_files_stay_short() -> None:
    lengths = {str(path.relative_to(ROOT)): path.read_bytes().count(b"\n") for path in sources(".py", ".c", ".h")}
    assert len(lengths) > 100
    assert not longest_first(lengths, FILE_LINES)


def functions(source: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


def test_functions_fit_one_screen() -> None:
    lengths = {
        f"{path.relative_to(ROOT)}: {name}": lines
        for path in sources(".py")
        for name, lines in functions(path.read_text())
    }
    assert not longest_first(lengths, SCREEN_LINES)


@pytest.mark.parametrize(("body", "lines"), [("pass", 2), ("pass\n    pass", 3)])
def test_lines_are_counted_without_decorators(body: str, lines: int) -> None:
    assert list(functions(f"@staticmethod\ndef f():\n    {body}\n")) == [("f", lines)]
