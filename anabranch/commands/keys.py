"""`anabranch keys`: who may ask the service."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from anabranch.output import Output

app = typer.Typer(no_args_is_help=True, help="API keys of the service: make, list, revoke.")
KEYS = Path("anabranch-keys.json")
FileOption = Annotated[Path, typer.Option("--file", help="File of the keys; its owner alone can read it.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
ScopeOption = Annotated[
    list[str], typer.Option("--scope", help="read (ask), write (send events) or admin (all, and figures); repeatable.")
]


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Who or what it is for.")],
    scope: ScopeOption = ["read"],  # noqa: B006 - typer's way to give a list a default; it is only read
    file: FileOption = KEYS,
    as_json: JsonFlag = False,
) -> None:
    """Make a key. It is shown once: the file holds its hash.

    \b
    Example:
      anabranch keys new shop --scope read --scope write
    """
    from common.errors import UnknownName
    from server.serving.keys import SCOPES, KeyFile, Scope

    known: dict[str, Scope] = {each: each for each in SCOPES}
    unknown = [each for each in scope if each not in known]
    if unknown:
        raise UnknownName("scope", unknown[0], list(known))
    key, secret = KeyFile(file).new(name, [known[each] for each in scope])
    result = {"key_id": key.key_id, "name": key.name, "scopes": list(key.scopes), "key": secret, "file": str(file)}

    def draw(console: Console) -> None:
        console.print(f"key {key.key_id} for {escape(name)} ({', '.join(key.scopes)}); it is not shown again:")
        console.print(secret, soft_wrap=True, highlight=False)

    Output(as_json=as_json).result(result, draw)


@app.command("list")
def list_keys(file: FileOption = KEYS, as_json: JsonFlag = False) -> None:
    """List the keys by id, without the keys.

    \b
    Example:
      anabranch keys list
    """
    from server.serving.keys import KeyFile

    rows: list[dict[str, Any]] = [
        {
            "key_id": key.key_id,
            "name": key.name,
            "scopes": list(key.scopes),
            "created_at": key.created_at,
            "revoked_at": key.revoked_at,
        }
        for key in KeyFile(file).keys()
    ]

    def draw(console: Console) -> None:
        table = Table("id", "name", "scopes", "state")
        for row in rows:
            state = "good" if row["revoked_at"] is None else "revoked"
            table.add_row(row["key_id"], escape(row["name"]), ", ".join(row["scopes"]), state)
        console.print(table)

    Output(as_json=as_json).result({"keys": rows}, draw)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="Id of the key, as `anabranch keys list` shows it.")],
    file: FileOption = KEYS,
    as_json: JsonFlag = False,
) -> None:
    """Make a key good for nothing; a running service minds it with the next request.

    \b
    Example:
      anabranch keys revoke 1f2e3d4c
    """
    from server.serving.keys import KeyFile

    key = KeyFile(file).revoke(key_id)
    Output(as_json=as_json).result(
        {"key_id": key.key_id, "revoked_at": key.revoked_at}, lambda console: console.print(f"key {key_id} is revoked")
    )
