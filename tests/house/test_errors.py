"""The drawn tree of exceptions is the real one."""

import re

from common import errors
from common.errors import AnabranchError


def _drawn() -> dict[str, tuple[str | None, int | None]]:
    """Return name to (parent, exit code where it is drawn)."""
    drawing = (errors.__doc__ or "").partition("::")[2]
    tree: dict[str, tuple[str | None, int | None]] = {}
    above: list[tuple[int, str]] = []
    for line in drawing.splitlines():
        match = re.match(r"^(?P<rails>[ │├└─]*)(?P<name>[A-Z]\w+)(?: \(exit (?P<code>\d)\))?", line)
        if not match:
            continue
        depth = len(match["rails"])
        above = [(at, name) for at, name in above if at < depth]
        code = int(match["code"]) if match["code"] else None
        tree[match["name"]] = (above[-1][1] if above else None, code)
        above.append((depth, match["name"]))
    return tree


def _real() -> dict[str, type[AnabranchError]]:
    found = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
    return {name: value for name, value in found.items() if issubclass(value, AnabranchError)}


def test_the_drawn_tree_is_the_real_one() -> None:
    real = {name: kind.__mro__[1].__name__ if kind is not AnabranchError else None for name, kind in _real().items()}
    assert {name: parent for name, (parent, _) in _drawn().items()} == real


def test_the_drawn_exit_codes_are_the_real_ones() -> None:
    codes = {name: code for name, (_, code) in _drawn().items() if code is not None}
    assert codes
    assert {name: _real()[name].exit_code for name in codes} == codes


def test_a_message_is_one_line_with_all_its_parts() -> None:
    error = AnabranchError("found\nthis", expected="that", consequence="nothing was written", mend="do it")
    assert str(error) == "found this; expected that; nothing was written; to mend it: do it"
