"""Errors: one tree, one line, two exit codes."""

import inspect
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import errors
from common.errors import AnabranchError, InvalidSetting, UnknownName, UsageError

ALL = [found for _, found in inspect.getmembers(errors, inspect.isclass) if found.__module__ == errors.__name__]


@pytest.mark.parametrize("error", ALL)
def test_every_error_is_of_the_tree_and_drawn_in_it(error: type[AnabranchError]) -> None:
    assert issubclass(error, AnabranchError)
    assert error.__doc__
    drawn = str(errors.__doc__)
    assert re.search(rf"\b{error.__name__}\b", drawn), f"{error.__name__} is missing from the drawn tree"
    assert error.exit_code == (2 if issubclass(error, UsageError) else 1)


def test_the_drawn_tree_names_nothing_else_and_nests_alike() -> None:
    parents: list[str] = []
    for line in str(errors.__doc__).splitlines():
        found = re.match(r"^ {4}([│├└─ ]*)([A-Z]\w+)", line)
        if not found:
            continue
        depth = len(found[1]) // 4
        parents[depth:] = [found[2]]
        error = getattr(errors, found[2])
        if depth:
            assert error.__mro__[1].__name__ == parents[depth - 1]


@given(st.text(), st.text(), st.text(), st.text())
def test_the_text_is_always_one_line(found: str, expected: str, consequence: str, mend: str) -> None:
    text = str(InvalidSetting(found, expected=expected, consequence=consequence, mend=mend))
    assert len(text.splitlines()) <= 1


def test_the_text_says_found_expected_consequence_and_mend() -> None:
    error = InvalidSetting("rank 0", expected="1 or more", consequence="nothing was written", mend="--rank 8")
    assert str(error) == "rank 0; expected 1 or more; nothing was written; to mend it: --rank 8"
    assert (error.found, error.expected, error.consequence, error.mend) == (
        "rank 0",
        "1 or more",
        "nothing was written",
        "--rank 8",
    )


def test_an_unknown_name_lists_the_known_ones() -> None:
    assert str(UnknownName("strategy", "fedx", ["fedsvd", "fedit"])) == (
        "unknown strategy 'fedx'; expected one of fedit, fedsvd"
    )
