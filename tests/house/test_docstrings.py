"""Every public name says what it is."""

import ast
from collections.abc import Iterator

from tests.house.tree import modules

_EXEMPT = frozenset({"setter", "deleter", "overload"})
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _exempt(node: Definition) -> bool:
    marks = (d.attr if isinstance(d, ast.Attribute) else getattr(d, "id", "") for d in node.decorator_list)
    return any(mark in _EXEMPT for mark in marks)


def _undocumented(body: list[ast.stmt], where: str) -> Iterator[str]:
    for node in body:
        if not isinstance(node, Definition) or node.name.startswith("_") or _exempt(node):
            continue
        name = f"{where}.{node.name}"
        if not ast.get_docstring(node):
            yield name
        if isinstance(node, ast.ClassDef):
            yield from _undocumented(node.body, name)


def test_every_public_name_has_a_docstring() -> None:
    bare = []
    for module in modules():
        if not ast.get_docstring(module.tree):
            bare.append(module.name)
        bare += _undocumented(module.tree.body, module.name)
    assert not bare


def test_the_check_finds_what_it_should() -> None:
    documented = "class A:\n    'doc'\n    def b(self): ...\n    def _c(self): ...\n"
    source = documented + "def d(): ...\nclass _E:\n    def f(self): ...\n"
    assert list(_undocumented(ast.parse(source).body, "m")) == ["m.A.b", "m.d"]
