"""`anabranch evaluate audit`: what an attacker really learns, against what the ledger claims."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from anabranch.output import Output
from common.errors import PrivacyError

if TYPE_CHECKING:
    from anabranch.audit import AuditResult, AuditSettings


def audit(
    data: Annotated[str, typer.Option(help="Data set of the people that the canaries hide among.")] = "synthetic",
    people: Annotated[int, typer.Option(help="How many of them; 0: the node holds canaries alone.")] = 10,
    canaries: Annotated[int, typer.Option(help="Made-up people a run, each in or out by a coin flip.")] = 16,
    runs: Annotated[int, typer.Option(help="Independent trainings, each with canaries of its own.")] = 6,
    guesses: Annotated[int, typer.Option(help="Guesses over all runs, half of them in, half out.")] = 48,
    rounds: Annotated[int, typer.Option(help="Federated rounds a run.")] = 2,
    confidence: Annotated[float, typer.Option(help="Of the lower bound.")] = 0.95,
    privacy: Annotated[str, typer.Option(help="What is protected: user or example.")] = "user",
    epsilon: Annotated[float, typer.Option(help="Budget; small ones are the ones an audit can refute.")] = 1.0,
    delta: Annotated[float, typer.Option(help="Delta of the guarantee.")] = 1e-5,
    sample_rate: Annotated[float, typer.Option(help="Chance of each record to take part in a step.")] = 0.5,
    window: Annotated[int, typer.Option(help="Most clicks in a record.")] = 6,
    negatives: Annotated[int, typer.Option(help="Sampled items a record.")] = 8,
    clip: Annotated[float, typer.Option(help="Bound on a record's gradient norm.")] = 0.1,
    strategy: Annotated[str, typer.Option(help="Aggregation; see `anabranch simulate --help`.")] = "fedsvd",
    encoder: Annotated[str, typer.Option(help="minilm, a Hugging Face BERT, or a folder.")] = "minilm",
    store: Annotated[Path | None, typer.Option(help="Start from this store's current adapter and encoder.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same figures.")] = 0,
    without_noise: Annotated[
        bool, typer.Option("--without-noise", help="Leave the noise out and charge for it: the audit must notice.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Attack the training with made-up people and bound epsilon from below.

    A bound above the claim refutes it (exit code 1). A bound below proves nothing: a better attacker might do better.

    \b
    Example:
      anabranch evaluate audit --epsilon 1
      anabranch evaluate audit --without-noise
    """
    out = Output(as_json=as_json)
    from anabranch.audit import AuditSettings
    from anabranch.simulation_settings import privacy_terms
    from common.instructions import Objective

    settings = AuditSettings(
        canaries=canaries,
        guesses=guesses,
        runs=runs,
        rounds=rounds,
        confidence=confidence,
        privacy=privacy_terms(privacy, epsilon=epsilon, delta=delta, sample_rate=sample_rate),
        objective=Objective(window=window, negatives=negatives, clip=clip),
        strategy=strategy,
        seed=seed,
        noise=not without_noise,
    )
    result, started_from = _run(out, settings, data, people, encoder, store)
    _print(out, settings, {"data": data, "people": people, "started_from": started_from}, result)


def _print(out: Output, settings: "AuditSettings", about: dict[str, Any], result: "AuditResult") -> None:
    """Print the result, and fail when it refutes the claim."""
    protocol = {
        **asdict(settings),
        **about,
        "attacker": "sees every adapter and update and knows all clicks, not the coin flips, the sampling or the noise",
        "bound": "one-run audit, arXiv 2305.08846",
    }
    row = {
        "claim": result.claim,
        "lower_bound": result.bound,
        "reachable": result.reachable,
        "confidence": settings.confidence,
        "canaries": result.canaries,
        "guesses": result.guesses,
        "correct": result.correct,
        "refuted": result.refuted,
    }
    out.result({"protocol": protocol, "rows": {"audit": row}, "report": None}, lambda console: _draw(console, row))
    if result.refuted:
        raise PrivacyError(
            f"an attacker shows epsilon of at least {result.bound:.3f} at {settings.confidence:.0%} confidence",
            expected=f"at most the {result.claim:.3f} of the ledger",
            consequence="the claim is false",
            mend="trust no version trained by this code" if settings.noise else "train with noise",
        )


def _run(
    out: Output, settings: "AuditSettings", data: str, people: int, encoder_name: str, store: Path | None
) -> tuple["AuditResult", str]:
    """Load what is needed and audit; return the result and the name of the version it started from."""
    from anabranch.audit import audit as run_audit
    from client.dataset import NodeData
    from common.datasets.registry import load_dataset
    from common.encoder.adapter import TextEncoder
    from common.encoder.cache import open_or_build
    from common.encoder.spec import EncoderSpec
    from server.artifact import ADAPTER_WEIGHTS
    from server.registry import Registry

    base, started_from = None, "a fresh adapter"
    if store is not None:
        registry = Registry.open(store)
        started_from, encoder_name = registry.current().version, registry.info.encoder
        base = registry.arrays(started_from, ADAPTER_WEIGHTS)
    with out.progress() as report, tempfile.TemporaryDirectory(prefix="anabranch-audit-") as folder:
        dataset = load_dataset(data, seed=settings.seed, progress=report, notice=out.note)
        histories = NodeData.from_interactions(dataset.interactions, dataset.catalogue).histories
        chosen = {user: histories[user] for user in sorted(histories)[:people]}
        encoder = TextEncoder.load(EncoderSpec.from_name(encoder_name))
        cache = open_or_build(Path(folder), encoder, dataset.catalogue.texts, report)
        return run_audit(chosen, encoder, cache, settings, base=base, progress=report), started_from


def _draw(console: Console, row: dict[str, Any]) -> None:
    table = Table(title="Audit", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("figure", justify="right")
    for name, figure in (
        ("epsilon that the ledger claims", f"{row['claim']:.3f}"),
        (f"lower bound at {row['confidence']:.0%} confidence", f"{row['lower_bound']:.3f}"),
        ("the most this audit could have shown", f"{row['reachable']:.3f}"),
        ("canaries (coin flips)", str(row["canaries"])),
        ("right guesses", f"{row['correct']} of {row['guesses']}"),
    ):
        table.add_row(name, figure)
    console.print(table)
    if row["reachable"] <= row["claim"]:
        console.print("The claim is above what so few guesses could refute; more --guesses and --runs reach further.")
