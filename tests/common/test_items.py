"""The catalogue: a fixed order, found by id or place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DataError, EmptyData
from common.items import Catalogue, Item

unique_ids = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=20, unique=True)


def items_of(ids: list[str]) -> list[Item]:
    """Return an item for each id."""
    return [Item(item_id, f"title {item_id}", f"text {item_id}") for item_id in ids]


@given(unique_ids)
def test_place_and_id_are_inverse(ids: list[str]) -> None:
    catalogue = Catalogue(items_of(ids))
    assert catalogue.ids == tuple(ids)
    assert [catalogue.index(item.item_id) for item in catalogue] == list(range(len(catalogue)))
    assert catalogue.texts == tuple(item.text for item in catalogue)
    assert all(item_id in catalogue for item_id in ids)


@given(unique_ids, st.text(max_size=8))
def test_an_unknown_id_has_no_place(ids: list[str], other: str) -> None:
    catalogue = Catalogue(items_of(ids))
    assert (catalogue.index(other) is None) == (other not in ids)
    assert (other in catalogue) == (other in ids)


def test_no_items_is_an_error() -> None:
    with pytest.raises(EmptyData):
        Catalogue([])


def test_two_items_of_one_id_are_refused_by_name() -> None:
    with pytest.raises(DataError, match="'b' occurs twice"):
        Catalogue(items_of(["a", "b", "c", "b"]))


def test_a_generator_is_read_once() -> None:
    assert len(Catalogue(item for item in items_of(["a", "b"]))) == 2
