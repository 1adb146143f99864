"""`anabranch ledger`: what each client spent of its privacy, and whether that can be believed."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from anabranch.output import Output
from common.errors import LedgerCorrupt

if TYPE_CHECKING:
    from anabranch.ledgers import Account
    from client.ledger import Entry

app = typer.Typer(no_args_is_help=True, help="Show and verify what clients spent of their privacy budgets.")

Store = Annotated[Path, typer.Option(help="Folder of models, or one ledger file (a deployed node has just that).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
DEFAULT_STORE = Path("anabranch-store")
SHOWN = 20
"""Clients in the table; all of them are in the JSON."""


@app.command("show")
def show(
    store: Store = DEFAULT_STORE,
    client: Annotated[str | None, typer.Option(help="Only this client, with every entry of its ledger.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what every client spent so far, the worst first.

    \b
    Example:
      anabranch ledger show --store anabranch-store
      anabranch ledger show --client node-00003 --json
    """
    from anabranch.ledgers import find_ledgers, read_accounts

    out = Output(as_json=as_json)
    accounts = read_accounts(find_ledgers(store), client)
    payload: dict[str, Any] = {"clients": {each.client: _row(each) for each in accounts}}
    if client is not None:
        payload["entries"] = [_entry(entry) for each in accounts for entry in each.contents.entries]
    out.result(payload, lambda console: _draw(console, payload, store))


@app.command("verify")
def verify(store: Store = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Recompute every client's epsilon with another accountant, and compare it with the versions' claims.

    Needs Google's dp-accounting (pip install 'dp-accounting>=0.6,<0.7'). Exit code 1 when anything does not fit.

    \b
    Example:
      anabranch ledger verify --store anabranch-store --json
    """
    from anabranch.ledgers import PLD_SLACK, RDP_TOLERANCE, verify_store

    out = Output(as_json=as_json)
    with out.progress() as report:
        verdict = verify_store(store, report)
    payload = {
        "ok": verdict.ok,
        "recomputed": dict(verdict.recomputed),
        "max_difference": _finite(verdict.max_difference),
        "max_difference_pld": _finite(verdict.max_difference_pld),
        "tolerance": {"rdp": RDP_TOLERANCE, "pld": PLD_SLACK},
        "independent": {"rdp_whole_orders": dict(verdict.independent_rdp), "pld": dict(verdict.independent_pld)},
        "claims": {name: {"claimed": said, "ledgers": found} for name, (said, found) in verdict.claims.items()},
        "problems": list(verdict.problems),
    }

    def table(console: Console) -> None:
        console.print(f"{len(verdict.recomputed)} ledger(s) of {store}, recomputed with dp-accounting:", markup=False)
        console.print(f"  largest epsilon                {max(verdict.recomputed.values(), default=0.0):.6f}")
        console.print(f"  on the same Renyi orders       apart by at most {verdict.max_difference:.1e}")
        console.print(f"  against the loss distribution  apart by at most {verdict.max_difference_pld:.4f}")
        for name, (said, found) in verdict.claims.items():
            console.print(f"  {name} claims {said:.6f}, the ledgers then said {found:.6f}", markup=False)

    out.result(payload, table)
    if not verdict.ok:
        more = f" (and {len(verdict.problems) - 1} more)" if len(verdict.problems) > 1 else ""
        raise LedgerCorrupt(
            f"{verdict.problems[0]}{more}",
            consequence="what was spent, or what is claimed, cannot be believed",
            mend="restore the ledgers from a backup, and publish no version until they verify",
        )


def _row(account: "Account") -> dict[str, Any]:
    entries = account.contents.entries
    left = None if account.budget is None else max(0.0, account.budget - account.epsilon)
    return {
        "epsilon": account.epsilon,
        "delta": account.delta,
        "entries": len(entries),
        "budget": _finite(account.budget),
        "unit": account.unit,
        "remaining": _finite(left),
        "epochs": dict(account.epochs),
        "last": _entry(entries[-1]) if entries else None,
    }


def _entry(entry: "Entry") -> dict[str, Any]:
    ((sigma, rate, steps),) = entry.spend.steps
    return {
        "run": entry.purpose.run,
        "round": entry.purpose.round,
        "strategy": entry.purpose.strategy,
        "epoch": entry.epoch,
        "charged_at": entry.charged_at,
        "sigma": sigma,
        "rate": rate,
        "steps": steps,
        "delta": entry.spend.delta,
        "budget": _finite(entry.budget),
        "release": entry.release,
    }


def _finite(value: float | None) -> float | None:
    """JSON knows no infinity."""
    return value if value is not None and math.isfinite(value) else None


def _draw(console: Console, payload: dict[str, Any], store: Path) -> None:
    rows = payload["clients"]
    drawn = Table(
        title=f"{len(rows)} ledger(s) in {escape(str(store))}, the worst first; last: its last round",
        title_justify="left",
    )
    drawn.add_column("client", overflow="fold")
    drawn.add_column("unit")
    for column in ("epsilon", "budget", "remaining", "delta", "entries", "last"):
        drawn.add_column(column, justify="right")
    for name, row in list(rows.items())[:SHOWN]:
        figures = (_shown(row[key]) for key in ("epsilon", "budget", "remaining"))
        delta = "-" if row["delta"] is None else f"{row['delta']:g}"
        drawn.add_row(escape(name), row["unit"] or "-", *figures, delta, str(row["entries"]), _round(row["last"]))
    console.print(drawn)
    if len(rows) > SHOWN:
        console.print(f"and {len(rows) - SHOWN} more that spent less; --json shows all")
    if "entries" in payload:
        _draw_entries(console, payload["entries"])


def _draw_entries(console: Console, entries: list[dict[str, Any]]) -> None:
    drawn = Table(title=f"{len(entries)} entries, oldest first", title_justify="left")
    for column in ("charged", "epoch", "run", "round", "strategy", "sigma", "rate", "steps"):
        drawn.add_column(column, justify="right" if column in ("round", "sigma", "rate", "steps") else "left")
    for entry in entries:
        named = (escape(entry[key]) for key in ("epoch", "run"))
        figures = (f"{entry['sigma']:.4f}", f"{entry['rate']:g}", str(entry["steps"]))
        drawn.add_row(_date(entry["charged_at"]), *named, _round(entry), escape(entry["strategy"]) or "-", *figures)
    console.print(drawn)


def _round(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "-"
    return str(entry["round"]) if entry["round"] else "all"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _date(milliseconds: int) -> str:
    from datetime import UTC, datetime

    if not milliseconds:
        return "unknown"
    return datetime.fromtimestamp(milliseconds / 1_000, UTC).strftime("%Y-%m-%d %H:%M UTC")
