"""Tables and moments: whatever the file holds, rows come out or a DataError does."""

import gzip
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.datasets.tables import iso_ms, open_table, parse_delimited, read_times
from common.errors import DataError, EmptyData
from common.events import MAX_TS


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_delimiters_byte_order_marks_and_line_ends(delimiter: str, mark: str, ending: str) -> None:
    text = mark + ending.join([delimiter.join(["user", "item"]), delimiter.join(["u", "i"]), ""])
    table = parse_delimited(text.encode(), "t")
    assert table.columns == ("user", "item")
    assert list(table.rows) == [["u", "i"]]


def test_quoted_cells_keep_delimiters_and_line_ends() -> None:
    table = parse_delimited(b'a,b\n"x, y","two\nlines"\n\n', "t")
    assert list(table.rows) == [["x, y", "two\nlines"]]


def test_gzip_is_known_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(gzip.compress(b"a,b\n1,2\n"))
    assert list(open_table(tmp_path / "t.csv").rows) == [["1", "2"]]


@pytest.mark.parametrize("raw", [b"", b"\n", b" , \n1,2\n"])
def test_no_header_is_empty(raw: bytes) -> None:
    with pytest.raises(EmptyData, match="no header"):
        parse_delimited(raw, "t")


@given(st.binary(max_size=120))
def test_any_bytes_are_rows_or_a_data_error(raw: bytes) -> None:
    for content in (raw, b"\x1f\x8b" + raw, gzip.compress(raw)[:-3]):
        # any other exception fails the test
        with suppress(DataError):
            for row in parse_delimited(content, "t").rows:
                assert all(isinstance(cell, str) for cell in row)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.csv"):
        open_table(tmp_path / "gone.csv")
    with pytest.raises(DataError, match=tmp_path.name):
        open_table(tmp_path)


def test_parquet_cells_become_text(tmp_path: Path) -> None:
    moment = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    columns = {
        "user": pa.array([17850.0, None, 3.0]),
        "item": pa.array(["a", "b", None]),
        "at": pa.array([moment, None, moment]),
        "stars": pa.array([4.5, 1.0, 2.0]),
        "count": pa.array([1, 2, 3]),
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    table = open_table(tmp_path / "t.parquet")
    assert table.columns == tuple(columns)
    assert [tuple(row) for row in table.rows] == [
        ("17850", "a", moment.isoformat(), "4.5", "1"),
        ("", "b", "", "1", "2"),
        ("3", "", moment.isoformat(), "2", "3"),
    ]


@pytest.mark.parametrize("raw", [b"", b"PAR1", b"user,item\n1,2\n"])
def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "t.parquet").write_bytes(raw)
    with pytest.raises(DataError, match=r"t\.parquet"):
        open_table(tmp_path / "t.parquet")


MOMENTS = st.integers(10**8, 4 * 10**9)


@given(st.lists(MOMENTS, min_size=1, max_size=8))
def test_one_moment_reads_alike_in_every_form(seconds: list[int]) -> None:
    expected = tuple(second * 1000 for second in seconds)
    forms = {
        "epoch seconds": [str(second) for second in seconds],
        "epoch milliseconds": [str(second * 1000) for second in seconds],
        "ISO 8601, UTC where no zone is given": [
            datetime.fromtimestamp(second, UTC).isoformat(sep=" ") for second in seconds
        ],
    }
    for form, cells in forms.items():
        times = read_times(cells, "at")
        assert times.form == form
        assert times.ts == expected


@given(st.lists(st.text(max_size=12) | st.floats().map(str) | st.integers().map(str), max_size=8))
def test_any_cells_are_moments_in_range_or_nothing(cells: list[str]) -> None:
    try:
        times = read_times(cells, "at")
    except DataError:
        return
    assert len(times.ts) == len(cells)
    assert all(ts is None or 0 <= ts < MAX_TS for ts in times.ts)


def test_odd_cells_in_a_column_of_numbers_are_nothing() -> None:
    cells = ["881250949", "", "yesterday", "nan", "-5", "881250949.5", "8.8e8", "٣"]
    assert read_times(cells, "at").ts == (881250949000, None, None, None, None, 881250949500, 880000000000, None)


def test_numbers_finer_than_milliseconds_are_refused() -> None:
    with pytest.raises(DataError, match="'at'"):
        read_times(["1700000000000000"], "at")


@pytest.mark.parametrize(
    ("cell", "ts"),
    [
        ("2024-01-01", 1_704_067_200_000),
        ("2024-01-01T00:00:00Z", 1_704_067_200_000),
        ("2024-01-01T02:00:00+02:00", 1_704_067_200_000),
        ("2024-01-01 00:00:00.250", 1_704_067_200_250),
        ("1969-12-31", None),
        ("0001-01-01T00:00:00+14:00", None),
        ("9999-12-31T23:59:59-14:00", 253_402_351_199_000),
        ("2024-13-01", None),
        ("", None),
    ],
)
def test_iso_moments(cell: str, ts: int | None) -> None:
    assert iso_ms(cell) == ts


@given(st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1)), st.integers(-12, 12))
def test_zones_are_respected(moment: datetime, hours: int) -> None:
    shifted = moment.replace(tzinfo=UTC)
    cell = f"{(shifted + timedelta(hours=hours)).replace(tzinfo=None).isoformat()}{hours:+03d}:00"
    assert iso_ms(cell) == round(shifted.timestamp() * 1000)
