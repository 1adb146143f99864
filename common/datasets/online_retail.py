"""UCI Online Retail (Chen, 2015, doi 10.24432/C5BW33): invoice lines of a British gift shop, 2010 to 2011."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from common.datasets.base import Dataset, in_time_order
from common.datasets.source import Files, Obtained, Source
from common.datasets.tables import iso_ms, parse_delimited
from common.errors import ColumnMissing, DatasetUnavailable, EmptyData
from common.events import Action, Interaction
from common.items import Catalogue, Item
from common.progress import Progress

NAME = "online-retail"
LICENCE = "CC BY 4.0 (UCI Machine Learning Repository)"
ADDRESS = "https://archive.ics.uci.edu/dataset/352/online+retail"
COLUMNS = ("InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "CustomerID")
FILE = "online_retail.csv"
_HOW = f"save the sheet of {ADDRESS} as CSV (UTF-8), then `anabranch data fetch {NAME} --from FILE.csv`"


def _moment(cell: str) -> int | None:
    if (ts := iso_ms(cell)) is not None:
        return ts
    try:
        # as the sheet shows it: month, day, year
        moment = datetime.strptime(cell.strip(), "%m/%d/%Y %H:%M").replace(tzinfo=UTC)
    except ValueError:
        return None
    return int(moment.timestamp() * 1000)


def _quantity(cell: str) -> int | None:
    try:
        return int(cell)
    except ValueError:
        return None


def read_online_retail(files: Files) -> Dataset:
    """Read the invoice lines.

    A customer is a user and a stock code an item, described by the text most often given for it. A line of a cancelled
    invoice (its number starts with C) or with a negative quantity is a "return", any other a "purchase"; the value is
    the quantity. Lines that name no customer are left out and counted.

    Raises
    ------
    ColumnMissing
        When a column is not there, naming the ones that are.
    EmptyData
        When no line is usable.
    """
    raw = next(iter(files.values()))
    table = parse_delimited(raw, FILE)
    missing = [column for column in COLUMNS if column not in table.columns]
    if missing:
        raise ColumnMissing(
            f"no column {', '.join(missing)} among {', '.join(table.columns)}", expected=", ".join(COLUMNS), mend=_HOW
        )
    places = [table.columns.index(column) for column in COLUMNS]
    dropped: Counter[str] = Counter()
    texts: dict[str, Counter[str]] = {}
    events: list[Interaction] = []
    for number, row in enumerate(table.rows, start=1):
        event, text = _line(number, row, places, len(table.columns))
        if isinstance(event, str):
            dropped[event] += 1
            continue
        counts = texts.setdefault(event.item_id, Counter())
        if text:
            counts[text] += 1
        events.append(event)
    if not events:
        raise EmptyData(f"{FILE} has no usable line", expected="lines with a customer", consequence=_summary(dropped))
    catalogue = Catalogue(_item(code, counts) for code, counts in texts.items())
    return Dataset(NAME, catalogue, in_time_order(events), LICENCE, dropped=dict(dropped))


def _line(number: int, row: Sequence[str], places: Sequence[int], width: int) -> tuple[Interaction | str, str]:
    """Return the interaction and the item's text, or why there is none."""
    if len(row) != width:
        return "wrong number of columns", ""
    invoice, code, text, quantity, moment, customer = (row[place].strip() for place in places)
    customer = customer.removesuffix(".0")
    if not customer:
        return "no customer", ""
    amount, ts = _quantity(quantity), _moment(moment)
    if not code or amount is None or ts is None:
        return "unreadable stock code, quantity or date", ""
    returned = amount < 0 or invoice.upper().startswith("C")
    action: Action = "return" if returned else "purchase"
    return Interaction(f"retail-{number}", customer, code, action, ts, float(amount)), " ".join(text.split())


def _item(code: str, texts: Counter[str]) -> Item:
    text = texts.most_common(1)[0][0] if texts else ""
    return Item(code, title=text or code, text=text)


def _summary(dropped: Counter[str]) -> str:
    return ", ".join(f"{count} with {reason}" for reason, count in dropped.items()) or "it has no lines at all"


def _download(progress: Progress) -> Obtained:
    raise DatasetUnavailable(
        f"{NAME} is not in the cache, and UCI offers it as a spreadsheet only", expected="a CSV file", mend=_HOW
    )


def _adopt(path: Path) -> Obtained:
    found = path
    if path.is_dir():
        candidates = [path / name for name in (FILE, f"{FILE}.gz") if (path / name).is_file()]
        if not candidates:
            raise DatasetUnavailable(f"{path} does not hold {FILE} or {FILE}.gz", mend=_HOW)
        found = candidates[0]
    try:
        return Obtained({FILE: found.read_bytes()}, f"{found.name} on this machine")
    except OSError as error:
        raise DatasetUnavailable(f"{found} cannot be read: {error.strerror}", mend=_HOW) from error


ONLINE_RETAIL = Source(
    name=NAME,
    licence=LICENCE,
    notice=f"{NAME} is by Daqing Chen, UCI Machine Learning Repository, https://doi.org/10.24432/C5BW33. "
    f"Licence: {LICENCE}",
    origin=f"a CSV file with --from (sheet at {ADDRESS})",
    download=_download,
    adopt=_adopt,
    read=read_online_retail,
)
