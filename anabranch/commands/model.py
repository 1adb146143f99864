"""`anabranch model`: which versions there are, whether they are whole, and what the names stand for."""

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from anabranch.commands import model_lifecycle
from anabranch.output import Output
from common.errors import ArtifactCorrupt, NoModel, StoreError

if TYPE_CHECKING:
    from common.manifests import Manifest
    from server.registry import Registry

app = typer.Typer(no_args_is_help=True, help="List, compare, promote, verify, export and remove model versions.")
app.command("diff")(model_lifecycle.diff)
app.command("export")(model_lifecycle.export)
app.command("copy")(model_lifecycle.copy)
app.command("gc")(model_lifecycle.gc)

Store = Annotated[str, typer.Option(help="Folder of models, or an address like s3://bucket/prefix.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Name = Annotated[str, typer.Option("--name", help="The name that moves: current (what is served), champion, ...")]
DEFAULT_STORE = "anabranch-store"


@app.command("list")
def list_versions(store: Store = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """List all versions, oldest first.

    \b
    Example:
      anabranch model list --store anabranch-store
    """
    registry = _open(store)
    found, damaged = registry.examine()
    listed = {manifest.version: _row(manifest) for manifest in found}
    # a damaged one is listed as such, not hidden
    listed |= {name: {"version": name, "damaged": str(error)} for name, error in damaged.items()}
    rows = [listed[name] for name in sorted(listed)]
    pointers = registry.pointers()

    def table(console: Console) -> None:
        drawn = Table(title=f"{len(rows)} version(s) in {store}", title_justify="left")
        for column in ("version", "parents", "round", "recall@10", "epsilon", "made"):
            drawn.add_column(column)
        for row in rows:
            names = ", ".join(name for name, version in pointers.items() if version == row["version"])
            drawn.add_row(
                f"{row['version']} ({names})" if names else row["version"],
                ", ".join(row.get("parents", ())),
                _shown(row.get("round")),
                _shown(row.get("recall@10")),
                _shown((row.get("privacy") or {}).get("epsilon")),
                _date(row.get("created_at")) if "damaged" not in row else escape(f"damaged: {row['damaged']}"),
            )
        console.print(drawn)

    Output(as_json=as_json).result({"versions": rows, "current": pointers.get("current"), "pointers": pointers}, table)


@app.command("show")
def show(
    version: Annotated[str, typer.Argument(help="A version, or `current`.")] = "current",
    store: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Show one version: what it was made of, how well it does, what it guarantees.

    \b
    Example:
      anabranch model show v000003 --json
    """
    registry = _open(store)
    payload = _payload(_manifest(registry, version))

    def table(console: Console) -> None:
        drawn = Table(title=f"version {payload['version']}", title_justify="left", show_header=False)
        drawn.add_column("name")
        drawn.add_column("value", overflow="fold")
        for name, value in payload.items():
            drawn.add_row(name, escape(value if isinstance(value, str) else json.dumps(value)))
        console.print(drawn)

    Output(as_json=as_json).result(payload, table)


@app.command("promote")
def promote(
    version: Annotated[str, typer.Argument(help="The version, or another name for it.")],
    store: Store = DEFAULT_STORE,
    name: Name = "current",
    as_json: AsJson = False,
) -> None:
    """Make a version the current one, after checking all its files; running services take it up.

    \b
    Example:
      anabranch model promote v000003
      anabranch model promote v000003 --name champion
    """
    _move(_open(store), name, version, as_json=as_json)


@app.command("rollback")
def rollback(store: Store = DEFAULT_STORE, name: Name = "current", as_json: AsJson = False) -> None:
    """Make the parent of the current version the current one, after checking all its files.

    \b
    Example:
      anabranch model rollback
    """
    registry = _open(store)
    at = registry.pointer(name)
    if at is None and name != "current":
        raise NoModel(f"the name {name!r} is not set in {store}", mend=f"anabranch model promote VERSION --name {name}")
    manifest = registry.current() if at is None else registry.manifest(at)
    if not manifest.parents:
        raise StoreError(
            f"version {manifest.version!r} has no parent",
            expected="a version made from another one",
            consequence=f"it stays {name}",
            mend="anabranch model promote VERSION",
        )
    _move(registry, name, manifest.parents[0], as_json=as_json)


@app.command("verify")
def verify(
    version: Annotated[str, typer.Argument(help="A version, or a name for it.")] = "current",
    everything: Annotated[bool, typer.Option("--all", help="Every version, and what the names stand for.")] = False,
    store: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Re-hash every file of a version, manifest included, and compare with what was published.

    Ends with 1 when anything differs.

    \b
    Example:
      anabranch model verify v000003
      anabranch model verify --all --json
    """
    registry = _open(store)
    if everything:
        _verify_all(registry, as_json=as_json)
        return
    manifest = registry.verify(_manifest(registry, version).version)
    payload = {"version": manifest.version, "ok": True, "files": dict(manifest.files)}
    Output(as_json=as_json).result(
        payload, lambda console: console.print(f"{manifest.version}: {len(manifest.files)} files are as published")
    )


def _verify_all(registry: "Registry", *, as_json: bool) -> None:
    found: dict[str, dict[str, Any]] = {}
    for name in registry.names():
        try:
            found[name] = {"ok": True, "files": len(registry.verify(name).files)}
        except StoreError as error:
            found[name] = {"ok": False, "error": str(error)}
    lost = {}
    for name in registry.storage.pointers():
        try:
            version = registry.pointer(name)
        except ArtifactCorrupt as error:
            lost[name] = str(error)
        else:
            if version is not None and version not in found:
                lost[name] = f"stands for {version}, which is not there"
    ok = not lost and all(row["ok"] for row in found.values())

    def table(console: Console) -> None:
        for name, row in found.items():
            console.print(f"{name}: {row['files']} files are as published" if row["ok"] else escape(row["error"]))
        for name, reason in lost.items():
            console.print(escape(f"{name}: {reason}"))

    Output(as_json=as_json).result({"ok": ok, "versions": found, "lost_pointers": lost}, table)
    if not ok:
        raise typer.Exit(1)


def _open(store: str) -> "Registry":
    from server.registry import Registry

    return Registry.open(store)


def _manifest(registry: "Registry", version: str) -> "Manifest":
    return registry.current() if version == "current" else registry.manifest(version)


def _move(registry: "Registry", name: str, version: str, *, as_json: bool) -> None:
    before = None
    with suppress(ArtifactCorrupt):  # moving a damaged name mends it
        before = registry.pointer(name)
    checked = registry.verify(version)
    registry.point(name, checked.version)
    payload = {name: checked.version, "before": before}
    Output(as_json=as_json).result(
        payload, lambda console: console.print(f"{name} is {checked.version} (was {before or 'unset'})")
    )


def _payload(manifest: "Manifest") -> dict[str, Any]:
    from common.manifests import encode_manifest

    payload: dict[str, Any] = json.loads(encode_manifest(manifest))
    return payload


def _row(manifest: "Manifest") -> dict[str, Any]:
    """Return what the list shows of one version."""
    payload = _payload(manifest)
    return {
        "version": payload["version"],
        "parents": payload["parents"],
        "created_at": payload["created_at"],
        "round": payload["details"].get("round"),
        "strategy": payload["details"].get("strategy"),
        "recall@10": payload["metrics"].get("global", {}).get("recall@10"),
        "privacy": payload["privacy"],
    }


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _date(milliseconds: int | None) -> str:
    from datetime import UTC, datetime

    if milliseconds is None:
        return "-"
    return datetime.fromtimestamp(milliseconds / 1_000, UTC).strftime("%Y-%m-%d %H:%M UTC")
