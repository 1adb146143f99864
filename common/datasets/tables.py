"""CSV and Parquet files as rows of text, and text as moments in time."""

import csv
import gzip
import importlib
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from common.errors import DataError, EmptyData, InvalidSetting
from common.events import MAX_TS

DELIMITERS = ",\t;|"
SECONDS_BELOW = 1e11
"""Numbers below are seconds (until the year 5138), above are milliseconds (from March 1973 on)."""
MILLISECONDS_BELOW = 1e14
"""Numbers above are finer than milliseconds, and refused."""
_NUMBER = re.compile(r"[+-]?\d{1,20}(\.\d{0,20})?([eE][+-]?\d{1,2})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose cells are text, "" where there is nothing.

    Parameters
    ----------
    name
        The file's name.
    columns
        In the file's order.
    rows
        Read once; each as long as `columns`, but for CSV rows that are too short or too long as they came.
    """

    name: str
    columns: tuple[str, ...]
    rows: Iterator[Sequence[str]]


def open_table(path: Path) -> Table:
    """Open `.parquet`, or else delimited text (comma, tab, semicolon or bar; UTF-8; also `.gz`).

    Raises
    ------
    DataError
        When the file cannot be read, is not UTF-8 or not delimited text; reading the rows may raise it too.
    EmptyData
        When there is not even a header.
    InvalidSetting
        When Parquet is asked for and pyarrow is not installed.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if path.suffix.lower() in {".parquet", ".pq"}:
        return _parquet(raw, path.name)
    return parse_delimited(raw, path.name)


def parse_delimited(raw: bytes, name: str) -> Table:
    """Read delimited text with a header; see `open_table`."""
    try:
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8: {error}", mend="convert it, say with `iconv -t utf-8`") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name} is not a whole gzip file: {error}") from error
    header = text[: text.find("\n")] if "\n" in text else text
    delimiter = max(DELIMITERS, key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        columns = tuple(cell.strip() for cell in next(reader, []))
    except csv.Error as error:
        raise DataError(f"{name} is malformed: {error}") from error
    if not any(columns):
        raise EmptyData(f"{name} has no header", expected="the names of the columns in the first row")
    return Table(name, columns, _checked(reader, name))


def _checked(reader: Iterator[list[str]], name: str) -> Iterator[Sequence[str]]:
    try:
        yield from (row for row in reader if row)
    except csv.Error as error:
        raise DataError(f"{name} is malformed: {error}") from error


def _parquet(raw: bytes, name: str) -> Table:
    try:
        arrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise InvalidSetting(
            f"{name} is a Parquet file, and pyarrow is not installed",
            mend="pip install 'anabranch[parquet]', or convert it to CSV",
        ) from error
    try:
        table = parquet.read_table(arrow.BufferReader(raw))
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{name} is not a whole Parquet file: {error}") from error
    columns = tuple(str(column) for column in table.column_names)
    return Table(name, columns, _parquet_rows(table))


def _parquet_rows(table: Any) -> Iterator[Sequence[str]]:
    for batch in table.to_batches():
        cells = [[_as_text(cell) for cell in column.to_pylist()] for column in batch.columns]
        yield from zip(*cells, strict=True)


def _as_text(cell: object) -> str:
    if cell is None:
        return ""
    if isinstance(cell, datetime | date):
        return cell.isoformat()
    # ids that went through pandas with a hole in the column come as 17850.0
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell)


@dataclass(frozen=True, slots=True)
class Times:
    """A column of moments.

    Parameters
    ----------
    ts
        Milliseconds since the epoch, or None where the cell cannot be read.
    form
        What the column was taken for, for people.
    """

    ts: tuple[int | None, ...]
    form: str


def read_times(cells: Sequence[str], name: str) -> Times:
    """Detect the column's form (epoch seconds, epoch milliseconds, ISO 8601) and read it.

    Moments without a zone are UTC. A cell that does not fit the form of the column is None.

    Raises
    ------
    DataError
        When the numbers are too large for milliseconds.
    """
    filled = [cell.strip() for cell in cells if cell.strip()]
    numbers = sorted(float(cell) for cell in filled if _NUMBER.fullmatch(cell))
    if 2 * len(numbers) <= len(filled):
        return Times(tuple(iso_ms(cell) for cell in cells), "ISO 8601, UTC where no zone is given")
    median = numbers[len(numbers) // 2]
    if abs(median) >= MILLISECONDS_BELOW:
        raise DataError(
            f"column {name!r} has times like {median:.0f}",
            expected="epoch seconds, epoch milliseconds or ISO 8601",
            mend="divide them down to milliseconds",
        )
    scale = 1000 if abs(median) < SECONDS_BELOW else 1
    form = "epoch seconds" if scale == 1000 else "epoch milliseconds"
    return Times(tuple(_number_ms(cell.strip(), scale) for cell in cells), form)


def _number_ms(cell: str, scale: int) -> int | None:
    if not _NUMBER.fullmatch(cell):
        return None
    whole = int(cell) * scale if cell.lstrip("+-").isdigit() else round(float(cell) * scale)
    return whole if 0 <= whole < MAX_TS else None


def iso_ms(cell: str) -> int | None:
    """Return an ISO 8601 moment as milliseconds since the epoch, or None; UTC when it names no zone."""
    try:
        moment = datetime.fromisoformat(cell.strip())
    except ValueError:
        return None
    try:
        ts = round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    except (OverflowError, ValueError):
        return None
    return ts if 0 <= ts < MAX_TS else None
