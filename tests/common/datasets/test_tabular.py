"""Any file as a data set."""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.datasets.cache import DatasetCache
from common.datasets.registry import dataset_names, import_dataset, list_datasets, load_dataset
from common.datasets.tabular import ColumnMapping
from common.errors import (
    AnabranchError,
    ColumnMissing,
    DataError,
    DatasetUnavailable,
    EmptyData,
    InvalidSetting,
    UnknownName,
)

PLAIN = ColumnMapping("who", "what", "at")
CSV = """who,what,at,name,about,stars,did
u1,a,2024-01-01,Alpha,first letter,4.5,rating
u2,b,2024-01-03,Beta,,2,click
u1,b,2024-01-02,,second letter,5,purchase
"""


def written(folder: Path, text: str, name: str = "t.csv") -> Path:
    """Write a file."""
    (folder / name).write_text(text, "utf-8")
    return folder / name


def said(_: str) -> None:
    """Take a notice and keep silent."""


def test_an_import_is_stored_and_loads_alike(tmp_path: Path) -> None:
    mapping = ColumnMapping("who", "what", "at", text="about", title="name", value="stars", action="did")
    notices: list[str] = []
    imported = import_dataset("shop", written(tmp_path, CSV), mapping, cache=tmp_path / "c", notice=notices.append)
    loaded = load_dataset("shop", cache=tmp_path / "c", notice=said)
    assert loaded.interactions == imported.interactions
    assert list(loaded.catalogue) == list(imported.catalogue)
    assert (loaded.name, loaded.licence, loaded.source) == ("shop", imported.licence, "import of t.csv")
    assert [(e.event_id, e.user_id, e.item_id, e.action, e.value) for e in loaded.interactions] == [
        ("shop-1", "u1", "a", "rating", 4.5),
        ("shop-3", "u1", "b", "purchase", 5.0),
        ("shop-2", "u2", "b", "click", 2.0),
    ]
    assert [(i.item_id, i.title, i.text) for i in loaded.catalogue] == [
        ("a", "Alpha", "Alpha. first letter"),
        ("b", "Beta", "Beta. second letter"),
    ]
    assert any("ISO 8601" in notice for notice in notices)


def test_an_import_is_listed_and_replaced_by_the_next_of_its_name(tmp_path: Path) -> None:
    cache = tmp_path / "c"
    file = written(tmp_path, CSV)
    import_dataset("shop", file, PLAIN, cache=cache, notice=said)
    assert "shop" in dataset_names(cache)
    assert [(info.cached, info.source) for info in list_datasets(cache) if info.name == "shop"] == [
        (True, "import of t.csv")
    ]
    import_dataset("shop", written(tmp_path, CSV + "u3,c,2024-02-01,,,1,click\n"), PLAIN, cache=cache, notice=said)
    assert len(load_dataset("shop", cache=cache, notice=said).interactions) == 4
    # the name and what it stands for: no older copy is left
    assert len(list(DatasetCache(cache).folder.iterdir())) == 2


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        (ColumnMapping("nobody", "what", "at"), "'nobody' for the user"),
        (ColumnMapping("who", "nothing", "at"), "'nothing' for the item"),
        (ColumnMapping("who", "what", "never"), "'never' for the time"),
        (ColumnMapping("who", "what", "at", text="mute"), "'mute' for the text"),
        (ColumnMapping("who", "what", "at", title="no"), "'no' for the title"),
        (ColumnMapping("who", "what", "at", value="none"), "'none' for the value"),
        (ColumnMapping("who", "what", "at", action="stare"), "'stare' for the action"),
    ],
)
def test_a_missing_column_is_named_with_those_found_and_nothing_is_stored(
    tmp_path: Path, mapping: ColumnMapping, words: str
) -> None:
    with pytest.raises(ColumnMissing) as caught:
        import_dataset("shop", written(tmp_path, CSV), mapping, cache=tmp_path / "c", notice=said)
    assert words in str(caught.value)
    assert "who, what, at, name, about, stars, did" in str(caught.value)
    assert not (tmp_path / "c").exists()


def test_unusable_rows_are_counted_by_reason(tmp_path: Path) -> None:
    text = (
        "who,what,at,stars,did\nu,i,2024-01-01,4,click\n,i,2024-01-01,4,click\nu,,2024-01-01,4,click\n"
        "u,i,someday,4,click\nu,i,2024-01-01,many,click\nu,i,2024-01-01,nan,click\nu,i,2024-01-01,4,stare\n"
        f"u,i\n{'u' * 513},i,2024-01-01,4,click\n"
    )
    mapping = ColumnMapping("who", "what", "at", value="stars", action="did")
    notices: list[str] = []
    dataset = import_dataset("shop", written(tmp_path, text), mapping, cache=tmp_path / "c", notice=notices.append)
    assert len(dataset.interactions) == 1
    assert sorted(dataset.dropped.values()) == [1, 1, 1, 1, 2, 2]
    assert sum("rows left out" in notice for notice in notices) == 6
    assert load_dataset("shop", cache=tmp_path / "c", notice=said).dropped == dataset.dropped


@pytest.mark.parametrize("text", ["who,what,at\n", "who,what,at\n,i,2024-01-01\n", "who,what,at\nu,i,never\n"])
def test_nothing_usable_is_empty_and_nothing_is_stored(tmp_path: Path, text: str) -> None:
    with pytest.raises(EmptyData, match="nothing was stored"):
        import_dataset("shop", written(tmp_path, text), PLAIN, cache=tmp_path / "c", notice=said)
    assert not (tmp_path / "c").exists()


def test_an_items_file_describes_also_what_nobody_touched(tmp_path: Path) -> None:
    items = written(tmp_path, "what,about\na,first\nz,last\na,again\n", "items.csv")
    mapping = ColumnMapping("who", "what", "at", text="about")
    # the interactions need not have the text column then
    file = written(tmp_path, "who,what,at\nu,a,1700000000\nu,b,1700000001\n")
    dataset = import_dataset("shop", file, mapping, items=items, cache=tmp_path / "c", notice=said)
    assert [(item.item_id, item.text) for item in dataset.catalogue] == [("a", "first"), ("z", "last"), ("b", "")]
    assert [event.ts for event in dataset.interactions] == [1_700_000_000_000, 1_700_000_001_000]


@pytest.mark.parametrize(
    ("title", "about", "shown", "read"),
    [
        ("Mug", "red", "Mug", "Mug. red"),
        ("Mug", "", "Mug", "Mug"),
        ("", "red", "red", "red"),
        ("Mug", "Mug, red", "Mug", "Mug, red"),
        ("", "", "a", ""),
        ("", "x" * 100, "x" * 80, "x" * 100),
    ],
)
def test_title_and_text_of_an_item(tmp_path: Path, title: str, about: str, shown: str, read: str) -> None:
    file = written(tmp_path, f'who,what,at,name,about\nu,a,2024-01-01,{title},"{about}"\n')
    mapping = ColumnMapping("who", "what", "at", text="about", title="name")
    dataset = import_dataset("shop", file, mapping, cache=tmp_path / "c", notice=said)
    assert [(item.title, item.text) for item in dataset.catalogue] == [(shown, read)]


def test_an_items_file_without_the_item_column_is_refused(tmp_path: Path) -> None:
    items = written(tmp_path, "id,about\na,first\n", "items.csv")
    with pytest.raises(ColumnMissing, match=r"items\.csv"):
        import_dataset("shop", written(tmp_path, CSV), PLAIN, items=items, cache=tmp_path / "c", notice=said)


@pytest.mark.parametrize(
    ("mapping", "action"),
    [
        (PLAIN, "click"),
        (ColumnMapping("who", "what", "at", value="stars"), "rating"),
        (ColumnMapping("who", "what", "at", value="stars", action="purchase"), "purchase"),
        (ColumnMapping("who", "what", "at", action="view"), "view"),
    ],
)
def test_the_action_where_no_column_names_it(tmp_path: Path, mapping: ColumnMapping, action: str) -> None:
    notices: list[str] = []
    dataset = import_dataset("shop", written(tmp_path, CSV), mapping, cache=tmp_path / "c", notice=notices.append)
    assert {event.action for event in dataset.interactions} == {action}
    assert any("read as stars" in notice for notice in notices) == (action == "rating")


def test_parquet_and_csv_of_the_same_rows_are_the_same_data_set(tmp_path: Path) -> None:
    rows = {"who": ["u1", "u2"], "what": [7, 8], "at": [1_700_000_000_123, 1_700_000_000_456]}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    text = "who,what,at\n" + "".join(f"{u},{i},{t}\n" for u, i, t in zip(*rows.values(), strict=True))
    from_parquet = import_dataset("shop", tmp_path / "t.parquet", PLAIN, cache=tmp_path / "c", notice=said)
    from_csv = import_dataset("shop", written(tmp_path, text), PLAIN, cache=tmp_path / "c", notice=said)
    assert from_parquet.interactions == from_csv.interactions
    assert list(from_parquet.catalogue) == list(from_csv.catalogue)


def test_without_pyarrow_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    # what the import system does for a package that is not installed
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidSetting, match=r"pip install 'anabranch\[parquet\]'"):
        import_dataset("shop", tmp_path / "t.parquet", PLAIN, cache=tmp_path / "c", notice=said)


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "x" * 65, "movielens-100k", "synthetic", "a b"])
def test_names_that_cannot_be_or_are_taken(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidSetting):
        import_dataset(name, written(tmp_path, CSV), PLAIN, cache=tmp_path / "c", notice=said)


def test_a_file_that_breaks_half_way_stores_nothing_and_keeps_the_old(tmp_path: Path) -> None:
    cache = tmp_path / "c"
    import_dataset("shop", written(tmp_path, CSV), PLAIN, cache=cache, notice=said)
    broken = tmp_path / "broken.csv"
    broken.write_bytes(b"who,what,at\nu,i,2024-01-01\n" * 1000 + b"u,\xff,2024-01-01\n")
    with pytest.raises(DataError, match="UTF-8"):
        import_dataset("shop", broken, PLAIN, cache=cache, notice=said)
    assert len(load_dataset("shop", cache=cache, notice=said).interactions) == 3


@pytest.mark.parametrize("name", ["interactions.jsonl", "items.jsonl", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_a_damaged_import_is_refused(tmp_path: Path, name: str, damage: str) -> None:
    cache = tmp_path / "c"
    import_dataset("shop", written(tmp_path, CSV), PLAIN, cache=cache, notice=said)
    path = cache / "datasets" / "shop" / name
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content[:-3] if damage == "cut" else bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(AnabranchError) as caught:
        load_dataset("shop", cache=cache, notice=said)
    assert isinstance(caught.value, DatasetUnavailable | UnknownName)
    assert "import" in str(caught.value)
