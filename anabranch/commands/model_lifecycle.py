"""`anabranch model diff`, `export`, `copy` and `gc`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from anabranch.output import Output

if TYPE_CHECKING:
    from server.comparison import Comparison

Store = Annotated[str, typer.Option(help="Folder of models, or an address like s3://bucket/prefix.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
DEFAULT_STORE = "anabranch-store"
UNKNOWN_LICENCE = "Its licence is not known here: see where the data came from."


def diff(
    a: Annotated[str, typer.Argument(help="The older version, or a name for it.")],
    b: Annotated[str, typer.Argument(help="The newer version, or a name for it.")] = "current",
    top: Annotated[int, typer.Option(min=0, help="How many of the items that moved most to show.")] = 10,
    store: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Compare two versions: quality, guarantee, settings, adapter by layer, items whose vectors moved most.

    \b
    Example:
      anabranch model diff v000003 v000012
      anabranch model diff champion current --json
    """
    from server.comparison import compare
    from server.registry import Registry

    found = compare(Registry.open(store), a, b, top)
    Output(as_json=as_json).result(_comparison(found), lambda console: _draw(found, console))


def export(
    version: Annotated[str, typer.Argument(help="A version, or a name for it.")] = "current",
    to: Annotated[Path, typer.Option(help="The folder to make.")] = Path("anabranch-adapter"),
    store: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Write the adapter as a PEFT directory with a model card; `PeftModel.from_pretrained` loads it.

    \b
    Example:
      anabranch model export v000012 --to my-adapter
    """
    from common.datasets.registry import list_datasets
    from server.export import export as export_version
    from server.registry import Registry

    registry = Registry.open(store)
    name = registry.info.data
    known = {row.name: row for row in list_datasets()}.get(name.partition(":")[0])
    licence = f"Licence of the data: {known.licence}. Source: {known.source}." if known else UNKNOWN_LICENCE
    manifest = export_version(registry, version, to, licence)
    payload = {"version": manifest.version, "folder": str(to), "files": dict(manifest.files)}
    Output(as_json=as_json).result(
        payload, lambda console: console.print(escape(f"{manifest.version} is in {to}: {', '.join(manifest.files)}"))
    )


def copy(
    version: Annotated[str, typer.Argument(help="A version, or a name for it.")],
    to: Annotated[str, typer.Option(help="The other store: a folder, or an address; made when it is not there.")],
    store: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Publish a version in another store, all files checked; no name is moved.

    \b
    Example:
      anabranch model copy current --to s3://bucket/models
      anabranch model copy v000012 --store s3://bucket/models --to anabranch-store
    """
    from server.export import copy_version
    from server.registry import Registry

    other, manifest = copy_version(Registry.open(store), version, to)
    payload = {"version": manifest.version, "store": other.address}
    Output(as_json=as_json).result(
        payload,
        lambda console: console.print(escape(f"{manifest.version} is in {other.address}; no name stands for it")),
    )


def gc(
    keep: Annotated[int, typer.Option(help="How many of the newest versions to keep, at least 1.")] = 5,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    store: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Remove versions that nobody needs.

    Kept are the newest, those that a name stands for, and the parents of these, so that each can be rolled back; and
    one that is less than an hour old, when nothing was made from it yet: its publisher may be about to name it.

    \b
    Example:
      anabranch model gc --keep 5 --dry-run
    """
    from common.clock import wall_clock
    from server.registry import Registry
    from server.retention import collect, plan_retention

    registry = Registry.open(store)
    payload: dict[str, Any]
    if dry_run:
        plan = plan_retention(registry, keep, wall_clock())
        sizes = sum(map(registry.storage.size, plan.removed))
        payload = {"removed": list(plan.removed), "freed": sizes, "kept": dict(plan.kept), "leftovers": None}
    else:
        done = collect(registry, keep, wall_clock())
        payload = {"removed": list(done.removed), "freed": done.freed, "kept": dict(done.kept)}
        payload["leftovers"] = done.leftovers

    def table(console: Console) -> None:
        for version, reason in sorted(payload["kept"].items()):
            console.print(escape(f"{version} stays: {reason}"))
        verb = "would go" if dry_run else "are gone"
        names = ", ".join(payload["removed"]) or "none"
        console.print(escape(f"{len(payload['removed'])} version(s) {verb}, {payload['freed']} bytes: {names}"))

    Output(as_json=as_json).result({"dry_run": dry_run, **payload}, table)


def _comparison(found: "Comparison") -> dict[str, Any]:
    """Return the JSON: pairs become objects."""

    def pair(values: tuple[Any, Any]) -> dict[str, Any]:
        return {"a": values[0], "b": values[1]}

    return {
        "a": found.a,
        "b": found.b,
        "metrics": {
            row: {name: pair(each) for name, each in metrics.items()} for row, metrics in found.metrics.items()
        },
        "privacy": {name: pair(values) for name, values in found.privacy.items()},
        "settings": {name: pair(values) for name, values in found.settings.items()},
        "adapter": [asdict(layer) for layer in found.layers],
        "items": {"mean_distance": found.mean_distance, "moved_most": [asdict(item) for item in found.items]},
    }


def _draw(found: "Comparison", console: Console) -> None:
    pairs = [
        (f"{row} {name}", *values)
        for row, metrics in found.metrics.items()
        for name, values in metrics.items()
        if values[0] != values[1]
    ]
    pairs += [(f"privacy {name}", *values) for name, values in found.privacy.items() if values[0] != values[1]]
    pairs += [(name, *values) for name, values in found.settings.items()]
    drawn = Table(title=f"{found.a} to {found.b}: what differs", title_justify="left")
    for column in ("what", found.a, found.b):
        drawn.add_column(column, overflow="fold")
    for name, old, new in pairs:
        drawn.add_row(escape(name), escape(_shown(old)), escape(_shown(new)))
    console.print(drawn)
    layers = Table(title="adapter: norm of what each layer adds", title_justify="left")
    for column in ("layer", found.a, found.b, "difference"):
        layers.add_column(column)
    for layer in found.layers:
        layers.add_row(escape(layer.layer), *(f"{norm:.4g}" for norm in (layer.norm_a, layer.norm_b, layer.difference)))
    console.print(layers)
    items = Table(title=f"items moved by {found.mean_distance:.4g} on average; most:", title_justify="left")
    for column in ("item", "title", "distance"):
        items.add_column(column)
    for item in found.items:
        items.add_row(escape(item.item_id), escape(item.title), f"{item.distance:.4g}")
    console.print(items)


def _shown(value: object) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
