"""`anabranch evaluate stream`: the click learner beside its controls, one event after the other."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from anabranch.output import Output

DATA = "movielens-100k"
STORE = Path("anabranch-evaluation")


def stream(
    data: Annotated[str | None, typer.Option(help=f"Data set; default {DATA}, with --quick a made-up one.")] = None,
    texts: Annotated[
        str, typer.Option(help="Item texts: zero-shot, none, or a store for the vectors of its current model.")
    ] = "zero-shot",
    repeats: Annotated[
        bool, typer.Option("--repeats", help="Test, and allow in lists, what a user liked before (shops re-buy).")
    ] = False,
    warm_share: Annotated[float, typer.Option(help="Share of the likes that is learned and not tested.")] = 0.2,
    cold_share: Annotated[float, typer.Option(help="Share of the items hidden in the test on cold items.")] = 0.2,
    ease_most_items: Annotated[int, typer.Option(help="Leave EASE out with more candidates than this.")] = 4_000,
    rows: Annotated[str, typer.Option(help="Only these rows, by commas, and ours; empty for all.")] = "",
    events: Annotated[int, typer.Option(min=0, help="Only the first so many events; 0 takes all.")] = 0,
    encoder: Annotated[str, typer.Option(help="minilm, a Hugging Face BERT, or a folder.")] = "minilm",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps; for the texts.")] = "auto",
    seed: Annotated[int, typer.Option(help="The same seed gives the same figures.")] = 0,
    store: Annotated[Path, typer.Option(help="Folder of the report and of what the encoder computed.")] = STORE,
    report: Annotated[Path | None, typer.Option(help="Folder of the report; default STORE/report.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The same in little: a made-up stream.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Predict each like, then learn it: the blend, its members and the controls, on the same events.

    Writes stream-evaluation.html, .md and .json.

    \b
    Example:
      anabranch evaluate stream --data movielens-100k
      anabranch evaluate stream --quick --json
    """
    import msgspec

    from anabranch import evaluation_stream as asked
    from anabranch.evaluation_stream_report import compose, findings
    from anabranch.report import write_report
    from common.datasets.registry import load_dataset
    from common.store import write_atomic

    out = Output(as_json=as_json)
    settings = asked.StreamEvaluationSettings(
        warm_share=warm_share,
        repeats=repeats,
        seed=seed,
        ease_most_items=ease_most_items,
        events=events or None,
        cold_share=cold_share,
        rows=tuple(word.strip() for word in rows.split(",") if word.strip()),
    )
    settings = asked.quick(settings) if quick else settings
    folder = report or store / "report"
    with out.progress() as progress:
        name = data or (asked.QUICK_DATA if quick else DATA)
        dataset = load_dataset(name, seed=seed, progress=progress, notice=out.note)
        vectors = asked.texts_of(
            dataset, texts, store / "cache", encoder=encoder, device=device, seed=seed, progress=progress
        )
        payload = asked.evaluate_stream(dataset, settings, vectors, progress=progress, note=out.note).as_json()
    markdown, page = write_report(compose(payload), folder, "stream-evaluation")
    payload |= {"findings": findings(payload)[0], "report": str(page), "report_markdown": str(markdown)}
    write_atomic(folder / "stream-evaluation.json", msgspec.json.format(msgspec.json.encode(payload)))
    out.result(payload, lambda console: draw(console, payload))


def draw(console: Console, payload: dict[str, Any]) -> None:
    """Draw the rows, the findings, and where the report is."""
    from anabranch.evaluation_stream_report import label

    protocol = payload["protocol"]
    k = protocol["k"]
    table = Table(title=f"{protocol['data']}, {protocol['test_events']} tests, full rank", title_justify="left")
    for column in ("", f"recall@{k}", "95% interval", f"ndcg@{k}", "coverage", "µs an event"):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in payload["rows"].items():
        low, high = row["ci95"]
        table.add_row(
            label(name),
            f"{row[f'recall@{k}']:.4f}",
            f"{low:.4f} to {high:.4f}",
            f"{row[f'ndcg@{k}']:.4f}",
            f"{row['coverage']:.2f}",
            f"{row['us_per_event']:.0f}",
        )
    console.print(table)
    for sentence in payload["findings"]:
        console.print(f"- {sentence}")
    cold = payload["cold"]
    if cold is not None:
        recall = cold["rows"]["ours"][f"recall@{k}"]
        console.print(f"- cold items among themselves: recall@{k} {recall:.4f} over {cold['test_events']} tests")
    console.print(f"report: {payload['report']}")
