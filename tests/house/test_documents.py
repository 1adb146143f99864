"""What the documents name is there: files, links, classes, methods, functions."""

import ast
import re
from pathlib import Path

import pytest

from tests.house.tree import ROOT, ignored, modules

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "SECURITY.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
_FENCES = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def _quoted(path: Path) -> set[str]:
    """Return what is set in code style outside of blocks."""
    return set(_CODE.findall(_FENCES.sub("", path.read_text("utf-8"))))


def _defined() -> tuple[set[str], set[str]]:
    """Return the functions, and the classes with their members as "Class.member"."""
    functions, members = set(), set()
    for module in modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions.add(node.name)
            elif isinstance(node, ast.ClassDef):
                named = {getattr(inner, "name", "") for inner in node.body}
                named |= {
                    inner.target.id
                    for inner in node.body
                    if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name)
                }
                members |= {f"{node.name}.{name}" for name in named}
    return functions, members


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(path: Path) -> None:
    targets = [link for link in _LINK.findall(path.read_text("utf-8")) if not re.match(r"[a-z]+:", link)]
    assert not [link for link in targets if not (path.parent / link).exists()]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_source_file_that_is_named_exists(path: Path) -> None:
    tops = {top.name for top in ROOT.iterdir() if top.is_dir() and not ignored(top.name)}
    files = {text for text in _quoted(path) if re.fullmatch(r"[\w.-]+(/[\w.-]+)+\.(py|md|toml|yml|json)", text)}
    assert not [text for text in files if text.split("/")[0] in tops and not (ROOT / text).exists()]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_function_and_method_that_is_named_exists(path: Path) -> None:
    functions, members = _defined()
    quoted = _quoted(path)
    missing = {text for text in quoted if re.fullmatch(r"[a-z_]\w*\(\)", text) and text[:-2] not in functions}
    missing |= {text for text in quoted if re.fullmatch(r"[A-Z]\w+\.[a-z_]\w*", text) and text not in members}
    assert not {text for text in missing if not (ROOT / text).is_file()}
