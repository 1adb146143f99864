"""UCI Online Retail: invoice lines."""

import gzip
from pathlib import Path

import pytest

from common.datasets.online_retail import ONLINE_RETAIL, read_online_retail
from common.datasets.registry import fetch_dataset, load_dataset
from common.datasets.split import positives
from common.datasets.statistics import statistics_of
from common.errors import ColumnMissing, DatasetUnavailable, EmptyData

HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
LINES = (
    HEADER + "536365,A1,RED  MUG ,6,2010-12-01 08:26:00,2.55,17850,United Kingdom\n"
    "536366,A1,RED MUG,2,2010-12-01 08:25:00,2.55,17851.0,United Kingdom\n"
    "536367,A1,blue mug?,2,2010-12-01 08:28:00,2.55,17851,United Kingdom\n"
    "C536368,A1,RED MUG,-6,2010-12-02 08:26:00,2.55,17850,United Kingdom\n"
    "C536369,B2,,1,2010-12-02 08:26:00,2.55,17850,United Kingdom\n"
    "536370,B2,,-1,12/2/2010 8:30,2.55,17850,United Kingdom\n"
    "536371,A1,RED MUG,3,2010-12-01 08:26:00,2.55,,United Kingdom\n"
    "536372,A1,RED MUG,three,2010-12-01 08:26:00,2.55,17850,United Kingdom\n"
    "536373,A1,RED MUG,3,some day,2.55,17850,United Kingdom\n"
    "536374,A1\n"
)


def said(_: str) -> None:
    """Take a notice and keep silent."""


def test_lines_become_purchases_and_returns_in_time_order() -> None:
    dataset = read_online_retail({"f": LINES.encode()})
    assert [(e.event_id, e.user_id, e.item_id, e.action, e.value) for e in dataset.interactions] == [
        ("retail-2", "17851", "A1", "purchase", 2.0),
        ("retail-1", "17850", "A1", "purchase", 6.0),
        ("retail-3", "17851", "A1", "purchase", 2.0),
        ("retail-4", "17850", "A1", "return", -6.0),
        ("retail-5", "17850", "B2", "return", 1.0),
        ("retail-6", "17850", "B2", "return", -1.0),
    ]
    assert dataset.interactions[-1].ts - dataset.interactions[-2].ts == 4 * 60_000


def test_an_item_is_described_by_what_is_said_most_often() -> None:
    items = {item.item_id: item for item in read_online_retail({"f": LINES.encode()}).catalogue}
    assert (items["A1"].title, items["A1"].text) == ("RED MUG", "RED MUG")
    assert (items["B2"].title, items["B2"].text) == ("B2", "")


def test_what_is_left_out_is_counted() -> None:
    dropped = read_online_retail({"f": LINES.encode()}).dropped
    assert dropped == {
        "no customer": 1,
        "unreadable stock code, quantity or date": 2,
        "wrong number of columns": 1,
    }


def test_a_missing_column_is_named() -> None:
    with pytest.raises(ColumnMissing, match="no column CustomerID among InvoiceNo"):
        read_online_retail({"f": LINES.replace("CustomerID", "Customer").encode()})


def test_only_anonymous_lines_are_nothing() -> None:
    with pytest.raises(EmptyData, match="1 with no customer"):
        read_online_retail({"f": (HEADER + "1,A,X,1,2010-12-01 08:26:00,1,,UK\n").encode()})


def test_without_a_file_the_error_says_what_to_get_where(tmp_path: Path) -> None:
    with pytest.raises(DatasetUnavailable) as caught:
        load_dataset("online-retail", cache=tmp_path, notice=said)
    for words in ("https://archive.ics.uci.edu/dataset/352/online+retail", "--from FILE.csv"):
        assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_is_adopted_once_and_then_read_from_the_cache(tmp_path: Path, packed: bool) -> None:
    file = tmp_path / ("lines.csv.gz" if packed else "lines.csv")
    file.write_bytes(gzip.compress(LINES.encode()) if packed else LINES.encode())
    notices: list[str] = []
    cache = tmp_path / "c"
    adopted = fetch_dataset("online-retail", origin=file, cache=cache, notice=notices.append)
    file.unlink()
    loaded = load_dataset("online-retail", cache=cache, fetch=False, notice=notices.append)
    assert loaded.interactions == adopted.interactions
    assert loaded.dropped == adopted.dropped
    assert len(notices) == 1
    assert "CC BY 4.0" in notices[0]


@pytest.mark.parametrize("content", [b"", b"who,what\n1,2\n", b"\x1f\x8bnot gzip"])
def test_a_file_that_is_something_else_never_enters_the_cache(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "lines.csv"
    file.write_bytes(content)
    with pytest.raises(Exception, match=r"online_retail\.csv|no column"):
        fetch_dataset("online-retail", origin=file, cache=tmp_path / "c", notice=said)
    assert not (tmp_path / "c").exists()


def test_the_real_lines(shared_data: Path) -> None:
    dataset = ONLINE_RETAIL.read(ONLINE_RETAIL.adopt(shared_data / "uci-online-retail").files)
    counted = statistics_of(dataset)
    lines = counted.interactions + sum(dataset.dropped.values())
    assert (lines, counted.users, counted.positives) == (240_007, 2_974, 168_675)
    assert len(positives(dataset)) == 168_675
    assert set(dataset.dropped) == {"no customer"}
    assert counted.items_without_text == 0
    assert all(event.value > 0 for event in positives(dataset))
