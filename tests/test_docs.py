"""What the documents point to is there: files, headings, functions that life-of-a-request.md names, shape letters."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(path for folder in (".", "docs", "examples", "training") for path in (ROOT / folder).glob("*.md"))
_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")


def links(document: Path) -> list[tuple[str, Path, str]]:
    """(text, file, heading) of every link within the repository."""
    found = _LINK.findall(document.read_text(encoding="utf-8"))
    return [(text, document.parent / target if target else document, heading) for text, target, heading in found]


def headings(document: Path) -> set[str]:
    """As anchors: lower case, spaces to dashes, no punctuation."""
    lines = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for text, target, heading in links(document):
        assert target.exists(), f"{text} -> {target}"
        assert not heading or heading in headings(target), f"{text} -> #{heading}"


_PATH = re.compile(r"(?<![\w/.-])(?:benchmarks|docs|examples|remuda|tests|training)/[\w/.-]*[\w/](?![\w<*-])")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_folders_that_are_named_exist(document: Path) -> None:
    named = set(_PATH.findall(document.read_text(encoding="utf-8")))
    assert not {path for path in named if not (ROOT / path).exists() and not (document.parent / path).exists()}


def names_in(source: Path) -> set[str]:
    """Functions and classes, methods as Class.method."""
    found = set()
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
            if isinstance(node, ast.ClassDef):
                found |= {
                    f"{node.name}.{m.name}" for m in node.body if isinstance(m, ast.FunctionDef | ast.AsyncFunctionDef)
                }
    return found


def test_the_life_of_a_request_names_what_is_there() -> None:
    named = [(text.strip("`"), file) for text, file, _ in links(ROOT / "docs/life-of-a-request.md") if text[0] == "`"]
    assert len(named) > 20
    for name, file in named:
        assert file.suffix != ".py" or name.endswith(".py") or name in names_in(file), f"{name} is not in {file}"


_SHAPED = re.compile(r"\b[a-z][a-z0-9_]*_(?=\w*[A-Z])([A-Z0-9k]+)\b")


def test_the_glossary_has_every_shape_letter() -> None:
    known = set(re.findall(r"^\| (\w) \|", (ROOT / "docs/glossary.md").read_text(encoding="utf-8"), re.MULTILINE))
    used: dict[str, str] = {}
    for source in (ROOT / "remuda").rglob("*.py"):
        for name in _SHAPED.finditer(source.read_text(encoding="utf-8")):
            used |= {letter: f"{name[0]} in {source.name}" for letter in name[1] if letter.isalpha()}
    assert len(used) > 20
    assert not {letter: name for letter, name in used.items() if letter not in known}
