"""What no source file may hold, and how long it may be."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.house.tree import ROOT, Module, files, modules

MODULE_LINES = 500
FUNCTION_LINES = 60
UNSAFE = frozenset({"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"})
BAG_NAMES = re.compile(r"(utils?|helpers?|misc|managers?)(_|$)|_(utils?|helpers?|misc|managers?)$")
# paths that exist on one machine only; the last group may not follow a word, so a/work/b is no match
MACHINE_PATH = re.compile(r"/(?:home|Users)/[a-z]\w*/|[A-Z]:\\Users\\|(?<![\w.~-])/(?:root|work|mnt/data)/")
UNFINISHED = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b|@@[A-Z]+@@")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def _at(module: Module, node: ast.AST) -> str:
    return f"{module.name}:{getattr(node, 'lineno', 1)}"


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield node.module


def _docstring_lines(function: Function) -> int:
    first = function.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    if not is_docstring or ast.get_docstring(function) is None:
        return 0
    return (first.end_lineno or first.lineno) - first.lineno + 1


def test_there_is_source_to_check() -> None:
    assert len(modules()) > 50


def test_nothing_prints_past_the_one_output() -> None:
    calls = [
        _at(module, node)
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not calls


def test_no_global_state_is_rebound() -> None:
    assert not [_at(m, n) for m in modules() for n in ast.walk(m.tree) if isinstance(n, ast.Global)]


def test_nothing_unpickles() -> None:
    found = []
    for module in modules():
        for node in ast.walk(module.tree):
            if any(name.partition(".")[0] in UNSAFE for name in _imported(node)):
                found.append(_at(module, node))
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                    found.append(_at(module, node.value))
            if isinstance(node, ast.Attribute) and node.attr in {"load", "save"}:
                if isinstance(node.value, ast.Name) and node.value.id == "torch":
                    found.append(_at(module, node))
    assert not found


def test_no_star_import() -> None:
    stars = [
        _at(module, node)
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
    ]
    assert not stars


def test_modules_are_short() -> None:
    long = {m.name: m.text.count("\n") for m in modules() if m.text.count("\n") > MODULE_LINES}
    assert not long


def test_functions_are_short() -> None:
    long = {}
    for module in modules():
        for node in ast.walk(module.tree):
            if isinstance(node, Function):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1 - _docstring_lines(node)
                if lines > FUNCTION_LINES:
                    long[f"{_at(module, node)} {node.name}"] = lines
    assert not long


def test_files_are_named_by_their_noun() -> None:
    assert not [module.name for module in modules() if BAG_NAMES.search(module.path.stem)]


@pytest.mark.parametrize(
    ("pattern", "what"), [(MACHINE_PATH, "a path of one machine"), (UNFINISHED, "an unfinished mark")]
)
def test_no_file_holds(pattern: re.Pattern[str], what: str) -> None:
    found = []
    for path in files(".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".json", ""):
        if path.name == "test_source.py":
            continue
        for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), start=1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}")
    assert not found, what


@pytest.mark.parametrize("text", ["see /root/x", "open('/work/a')", "/home/jo/data", r"C:\Users\jo", "/Users/jo/x"])
def test_the_path_pattern_bites(text: str) -> None:
    assert MACHINE_PATH.search(text)


@pytest.mark.parametrize("text", ["docs/work/a", "../shared/data", "/v1/users/{user_id}/x", "framework/root/x"])
def test_the_path_pattern_spares(text: str) -> None:
    assert not MACHINE_PATH.search(text)
