"""`anabranch data`: what can be learned from, where it is had, and what is in it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from anabranch.output import Output
from common.datasets.base import Dataset
from common.datasets.cache import cache_folder
from common.datasets.registry import Notice, fetch_dataset, import_dataset, list_datasets, load_dataset
from common.datasets.statistics import statistics_of
from common.datasets.tabular import ColumnMapping
from common.items import Item

app = typer.Typer(no_args_is_help=True, help="Data sets: list, fetch, import and describe them.")

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
SAMPLE = 5
_SHOWN_TEXT = 100


@app.command("list")
def list_(*, as_json: JsonFlag = False) -> None:
    """List the data sets that are known here.

    Example:  anabranch data list
    """
    out = Output(as_json=as_json)
    rows = list_datasets()

    def draw(console: Console) -> None:
        table = Table("name", "here", "licence", "source")
        for row in rows:
            table.add_row(row.name, "yes" if row.cached else "no", escape(row.licence), escape(row.source))
        console.print(table)

    datasets = [{"name": r.name, "cached": r.cached, "licence": r.licence, "source": r.source} for r in rows]
    out.result({"datasets": datasets, "cache": str(cache_folder())}, draw)


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="Name of the data set; see `anabranch data list`.")],
    *,
    origin: Annotated[
        Path | None, typer.Option("--from", help="Folder or file that has it, instead of the network.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Obtain a data set once and keep it in the cache.

    Example:  anabranch data fetch movielens-100k
    """
    out = Output(as_json=as_json)
    with out.progress() as report:
        dataset = fetch_dataset(name, origin=origin, progress=report, notice=_noting(out))
    _say_stored(out, dataset)


@app.command()
def describe(
    name: Annotated[str, typer.Argument(help="Name of the data set; fetched if it is not here.")],
    *,
    seed: Annotated[int, typer.Option(help="Seed of a synthetic data set.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Count users, items and interactions, and show a few items.

    Example:  anabranch data describe synthetic:users=1000,items=500,events=20000
    """
    out = Output(as_json=as_json)
    with out.progress() as report:
        dataset = load_dataset(name, seed=seed, progress=report, notice=_noting(out))
    payload = _described(dataset)

    def draw(console: Console) -> None:
        table = Table("", dataset.name, show_header=True)
        for key, value in payload.items():
            if key not in ("name", "sample"):
                table.add_row(key.replace("_", " "), escape(_shown(value)))
        console.print(table)
        console.print("[bold]Some items[/bold]")
        for item in payload["sample"]:
            console.print(f"  {item['item_id']}  {item['text'][:_SHOWN_TEXT]}", markup=False)

    out.result(payload, draw)


@app.command("import")
def import_(
    name: Annotated[str, typer.Argument(help="Name to store it under.")],
    file: Annotated[Path, typer.Argument(help="CSV (also .gz) or Parquet file with one interaction a row.")],
    *,
    user: Annotated[str, typer.Option(help="Column with the user's id.")],
    item: Annotated[str, typer.Option(help="Column with the item's id.")],
    time: Annotated[str, typer.Option(help="Column with the time: epoch seconds, milliseconds or ISO 8601.")],
    text: Annotated[str | None, typer.Option(help="Column that describes the item.")] = None,
    title: Annotated[str | None, typer.Option(help="Column with the item's title.")] = None,
    value: Annotated[str | None, typer.Option(help="Column with stars or quantities.")] = None,
    action: Annotated[
        str | None, typer.Option(help="Column with the action, or one action for all rows ('click', 'rating', ...).")
    ] = None,
    items: Annotated[
        Path | None, typer.Option(help="File that describes the items; has the item, text and title columns.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a data set of your own file: say which column is what.

    Example:  anabranch data import shop clicks.csv --user customer --item sku --time at --text description
    """
    out = Output(as_json=as_json)
    mapping = ColumnMapping(user, item, time, text=text, title=title, value=value, action=action)
    _say_stored(out, import_dataset(name, file, mapping, items=items, notice=_noting(out)))


def _noting(out: Output) -> Notice:
    return lambda text: out.note(escape(text))


def _moment(ts: int) -> str:
    return datetime.fromtimestamp(ts / 1000, UTC).isoformat(timespec="seconds")


def _described(dataset: Dataset) -> dict[str, Any]:
    counted = statistics_of(dataset)
    return {
        "name": dataset.name,
        "users": counted.users,
        "items": counted.items,
        "interactions": counted.interactions,
        "positives": counted.positives,
        "density": counted.density,
        "first": _moment(counted.first_ts),
        "last": _moment(counted.last_ts),
        "items_without_text": counted.items_without_text,
        "dropped": dict(dataset.dropped),
        "licence": dataset.licence,
        "source": dataset.source,
        "sample": [_shown_item(entry) for entry in _sample(dataset)],
    }


def _sample(dataset: Dataset) -> list[Item]:
    """Spread evenly over the catalogue, so the same every time."""
    step = max(1, len(dataset.catalogue) // SAMPLE)
    return [dataset.catalogue[place] for place in range(0, len(dataset.catalogue), step)][:SAMPLE]


def _shown_item(item: Item) -> dict[str, Any]:
    return {"item_id": item.item_id, "title": item.title, "text": item.text, "categories": list(item.categories)}


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{reason}: {count:,}" for reason, count in value.items()) or "none"
    if isinstance(value, float):
        return f"{value:.4%}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _say_stored(out: Output, dataset: Dataset) -> None:
    counted = statistics_of(dataset)
    payload = {
        "name": dataset.name,
        "users": counted.users,
        "items": counted.items,
        "interactions": counted.interactions,
        "dropped": dict(dataset.dropped),
        "licence": dataset.licence,
        "source": dataset.source,
        "cache": str(cache_folder()),
    }

    def draw(console: Console) -> None:
        console.print(
            f"{dataset.name}: {counted.users:,} users, {counted.items:,} items, {counted.interactions:,} interactions",
            markup=False,
        )
        if dataset.dropped:
            console.print(f"rows left out: {_shown(payload['dropped'])}", markup=False)
        console.print(f"next: anabranch data describe {dataset.name}", markup=False)

    out.result(payload, draw)
