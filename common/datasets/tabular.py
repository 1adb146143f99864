"""Any CSV or Parquet file as a data set: which column is what, and the normalised form it is stored in."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import msgspec

from common.datasets.base import Dataset, in_time_order
from common.datasets.files import read_catalogue, read_interactions
from common.datasets.tables import Table, open_table, read_times
from common.errors import ColumnMissing, EmptyData, InvalidSetting
from common.events import ACTIONS, MAX_ID_LENGTH, Action, Interaction, encode_event
from common.items import Catalogue, Item

INTERACTIONS_FILE = "interactions.jsonl"
ITEMS_FILE = "items.jsonl"
LICENCE = "as given by whoever gave you the file"
MAX_TITLE = 80
"""Characters of a text that stand in for a title where no title column is named."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class ColumnMapping:
    """Which column holds what.

    Parameters
    ----------
    user, item, time
        Columns of the interactions.
    text, title
        Columns that describe the item; of the items file if there is one.
    value
        Column with stars or quantities.
    action
        A column, or one of the actions for every row. None: "rating" where a value column is named, else "click".
    """

    user: str
    item: str
    time: str
    text: str | None = None
    title: str | None = None
    value: str | None = None
    action: str | None = None


def check_name(name: str, taken: Sequence[str]) -> None:
    """Refuse a name that cannot be a folder's, or that a built-in data set has.

    Raises
    ------
    InvalidSetting
        Saying which.
    """
    if not _NAME.fullmatch(name):
        raise InvalidSetting(f"data set name {name!r}", expected="letters, digits, '.', '_' and '-', at most 64")
    if name in taken:
        raise InvalidSetting(f"data set name {name!r} is taken by a built-in data set", mend="choose another name")


def read_table(
    name: str, file: Path, mapping: ColumnMapping, items: Path | None, notice: Callable[[str], None]
) -> Dataset:
    """Read a file of interactions, and of items if there is one.

    Rows without user or item, with an unreadable time, value or action are left out and counted by reason.

    Parameters
    ----------
    name
        Of the new data set.
    file, items
        CSV (also gzipped) or Parquet.
    mapping
        Which column holds what.
    notice
        Told what was detected and left out.

    Raises
    ------
    ColumnMissing
        When the mapping names a column that is not there; the ones that are get named.
    EmptyData
        When no row is usable.
    """
    table = open_table(file)
    rows = _Rows(table, mapping, described=items is None)
    texts: dict[str, tuple[str, str]] = {}
    if items is not None:
        texts = _described(open_table(items), mapping)
    events, dropped = rows.read(name, texts, notice)
    for reason, count in dropped.items():
        notice(f"{file.name}: {count} rows left out: {reason}")
    if not events:
        raise EmptyData(
            f"{file.name} has no usable row", expected="at least one interaction", consequence="nothing was stored"
        )
    for event in events:
        texts.setdefault(event.item_id, ("", ""))
    catalogue = Catalogue(_item(item_id, title, text) for item_id, (title, text) in texts.items())
    return Dataset(name, catalogue, in_time_order(events), LICENCE, f"import of {file.name}", dict(dropped))


def _place(table: Table, column: str, role: str) -> int:
    if column not in table.columns:
        raise ColumnMissing(
            f"{table.name} has no column {column!r} for the {role}", expected=f"one of {', '.join(table.columns)}"
        )
    return table.columns.index(column)


def _item(item_id: str, title: str, text: str) -> Item:
    # what is read names the item as well, unless the description begins with the name already
    read = text if text.startswith(title) else ". ".join(part for part in (title, text) if part)
    return Item(item_id, title=title or text[:MAX_TITLE] or item_id, text=read)


def _described(table: Table, mapping: ColumnMapping) -> dict[str, tuple[str, str]]:
    item = _place(table, mapping.item, "item")
    title = None if mapping.title is None else _place(table, mapping.title, "title")
    text = None if mapping.text is None else _place(table, mapping.text, "text")
    texts: dict[str, tuple[str, str]] = {}
    for row in table.rows:
        if len(row) == len(table.columns) and 0 < len(row[item].strip()) <= MAX_ID_LENGTH:
            _describe(texts, row, item, title, text)
    return texts


def _describe(
    texts: dict[str, tuple[str, str]], row: Sequence[str], item: int, title: int | None, text: int | None
) -> None:
    """Keep the first title and the first text that are not empty."""
    item_id = row[item].strip()
    old_title, old_text = texts.get(item_id, ("", ""))
    new_title = "" if title is None else " ".join(row[title].split())
    new_text = "" if text is None else " ".join(row[text].split())
    texts[item_id] = (old_title or new_title, old_text or new_text)


class _Rows:
    """The interactions of one table, row by row.

    Parameters
    ----------
    table, mapping
        What is read, and how.
    described
        Whether the title and text columns are in this table.
    """

    def __init__(self, table: Table, mapping: ColumnMapping, *, described: bool) -> None:
        self.table, self.mapping = table, mapping
        self.user = _place(table, mapping.user, "user")
        self.item = _place(table, mapping.item, "item")
        self.time = _place(table, mapping.time, "time")
        self.value = None if mapping.value is None else _place(table, mapping.value, "value")
        self.title = _place(table, mapping.title, "title") if described and mapping.title else None
        self.text = _place(table, mapping.text, "text") if described and mapping.text else None
        self.action, self.constant = self._action()

    def _action(self) -> tuple[int | None, Action]:
        named = self.mapping.action
        if named is None:
            return None, "click" if self.value is None else "rating"
        if named in self.table.columns:
            return self.table.columns.index(named), "click"
        if named not in ACTIONS:
            raise ColumnMissing(
                f"{named!r} for the action is neither a column of {self.table.name} nor an action",
                expected=f"a column ({', '.join(self.table.columns)}) or an action ({', '.join(ACTIONS)})",
            )
        return None, cast("Action", named)

    def read(
        self, name: str, texts: dict[str, tuple[str, str]], notice: Callable[[str], None]
    ) -> tuple[list[Interaction], Counter[str]]:
        """Return the usable interactions and the number of unusable rows by reason; fills `texts`."""
        kept: list[Interaction] = []
        cells: list[str] = []
        dropped: Counter[str] = Counter()
        users: dict[str, str] = {}
        for number, row in enumerate(self.table.rows, start=1):
            event = self._event(name, number, row, users)
            if isinstance(event, str):
                dropped[event] += 1
                continue
            if self.title is not None or self.text is not None:
                _describe(texts, row, self.item, self.title, self.text)
            kept.append(event)
            cells.append(row[self.time])
        times = read_times(cells, self.mapping.time)
        events = [replace(event, ts=ts) for event, ts in zip(kept, times.ts, strict=True) if ts is not None]
        if len(events) < len(kept):
            dropped[f"{self.mapping.time!r} is not {times.form}"] = len(kept) - len(events)
        notice(f"{self.table.name}: column {self.mapping.time!r} read as {times.form}")
        if self.mapping.action is None and self.value is not None:
            notice(
                f"{self.table.name}: {self.mapping.value!r} read as stars (4 and more count as liked); "
                "say `--action purchase` or another action if it is something else"
            )
        return events, dropped

    def _event(self, name: str, number: int, row: Sequence[str], users: dict[str, str]) -> Interaction | str:
        """Return the interaction, its time not yet read, or why there is none."""
        if len(row) != len(self.table.columns):
            return "wrong number of columns"
        user, item = row[self.user].strip(), row[self.item].strip()
        if not user or not item:
            return "no user or no item"
        if max(len(user), len(item)) > MAX_ID_LENGTH:
            return f"an id of more than {MAX_ID_LENGTH} characters"
        action = self.constant
        if self.action is not None:
            named = row[self.action].strip().lower()
            if named not in ACTIONS:
                return f"an action other than {', '.join(ACTIONS)}"
            action = cast("Action", named)
        value = 1.0 if self.value is None else _finite(row[self.value])
        if value is None:
            return f"{self.mapping.value!r} is not a number"
        return Interaction(f"{name}-{number}", users.setdefault(user, user), item, action, 0, value)


def _finite(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def normalised_files(dataset: Dataset) -> dict[str, bytes]:
    """Return the data set as JSON lines: what `read_normalised` reads back from a folder."""
    return {
        INTERACTIONS_FILE: b"".join(encode_event(event) + b"\n" for event in dataset.interactions),
        ITEMS_FILE: b"".join(msgspec.json.encode(item) + b"\n" for item in dataset.catalogue),
    }


def read_normalised(name: str, folder: Path, details: Mapping[str, Any]) -> Dataset:
    """Read back what `normalised_files` gave.

    Parameters
    ----------
    name
        Of the data set.
    folder
        Where the files lie.
    details
        What was noted beside them: "origin" and "dropped".

    Raises
    ------
    MalformedEvent, ArtifactCorrupt
        When a line is not what was written, naming it.
    """
    catalogue = read_catalogue(folder / ITEMS_FILE)
    events = tuple(read_interactions(folder / INTERACTIONS_FILE))
    return Dataset(name, catalogue, events, LICENCE, str(details["origin"]), dict(details["dropped"]))
