"""Ids and texts in arrays answer as a list and a dictionary would."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from common.errors import ArtifactCorrupt
from common.items import Catalogue, Item
from common.store import map_arrays, pack_arrays
from server.serving.tables import IdTable, ItemTable, TextTable, ids_from

TEXTS = st.lists(st.text(max_size=8), unique=True, max_size=30)


@given(texts=TEXTS, other=st.text(max_size=8))
def test_ids_are_found_as_in_a_dictionary(texts: list[str], other: str) -> None:
    table, rows = IdTable.of(texts), {text: row for row, text in enumerate(texts)}
    assert list(table) == texts
    assert len(table) == len(texts)
    assert [table.find(text) for text in texts] == list(range(len(texts)))
    assert table.find(other) == rows.get(other)


def test_ids_with_the_same_hash_are_told_apart() -> None:
    table = IdTable.of(["a", "b", "c"])
    level = IdTable(table.raw, table.starts, np.full(3, table.hashes[0]), np.arange(3))
    first = next(text for text in "abc" if table.find(text) == table.order[0])
    assert level.find(first) == "abc".index(first)
    assert level.find("d") is None


def test_texts_are_taken_like_those_of_a_list() -> None:
    texts = ["", "ü", "last \ud800"]
    table = TextTable.of(texts)
    assert [table[0], table[1], table[-1]] == texts
    assert list(table[1:]) == texts[1:]
    with pytest.raises(IndexError):
        table[3]


def test_a_mapped_table_of_items_is_the_same(tmp_path: Path) -> None:
    items = [
        Item("1", "One", "", ("odd", "odd", "small")),
        Item("2", "Two", "", ("small",)),
        Item("x", "", "", ()),
    ]
    table = ItemTable.of(Catalogue(items))
    (tmp_path / "items").write_bytes(pack_arrays(table.arrays()))
    mapped = ItemTable.from_arrays(map_arrays(tmp_path / "items"))
    assert not mapped.rows.flags.writeable
    for each in (table, mapped):
        assert len(each) == 3
        assert list(each) == ["1", "2", "x"]
        assert list(each.titles) == ["One", "Two", ""]
        assert (each.index("x"), each.index("y")) == (2, None)
        for category, rows in {"odd": [0], "small": [0, 1]}.items():
            within = each.within(category)
            assert within is not None
            assert within.tolist() == rows
        assert each.within("large") is None


def test_mapped_arrays_are_what_was_packed(tmp_path: Path) -> None:
    arrays: dict[str, np.ndarray] = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "none": np.empty((0, 4), dtype=np.int64),
        "flag": np.array([True, False]),
        "one": np.array(7, dtype=np.uint8),
    }
    path = tmp_path / "arrays"
    path.write_bytes(pack_arrays(arrays))
    mapped = map_arrays(path)
    assert mapped.keys() == arrays.keys()
    for name, array in arrays.items():
        assert mapped[name].dtype == array.dtype
        np.testing.assert_array_equal(mapped[name], array)
    with pytest.raises(ValueError, match="read-only"):
        mapped["a"][0, 0] = 1.0


@pytest.mark.parametrize("raw", [b"", b"short", pack_arrays({"a": np.zeros(9)})[:-8], b"\x00" * 64, b"\xff" * 64])
def test_a_damaged_file_is_not_mapped(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "arrays").write_bytes(raw)
    with pytest.raises(ArtifactCorrupt, match="not a safetensors file"):
        map_arrays(tmp_path / "arrays")


def test_ids_are_read_by_part() -> None:
    table = IdTable.of(["a", "b"])
    arrays = {f"users.{name}": array for name, array in table.arrays().items()}
    assert list(ids_from(arrays, "users")) == ["a", "b"]


def test_texts_beside_the_arrays_of_a_file_are_passed_over(tmp_path: Path) -> None:
    path, numbers = tmp_path / "arrays", np.arange(6, dtype=np.float32).reshape(2, 3)
    path.write_bytes(save({"numbers": numbers}, metadata={"format": "pt"}))
    found = map_arrays(path)
    assert list(found) == ["numbers"]
    np.testing.assert_array_equal(found["numbers"], numbers)
