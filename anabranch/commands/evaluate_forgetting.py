"""`anabranch evaluate forgetting`: what the click learner keeps of old windows while it learns new ones."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from anabranch.output import Output

DATA = "movielens-100k"
STORE = Path("anabranch-evaluation")


def forgetting(
    data: Annotated[str | None, typer.Option(help=f"Data set; default {DATA}, with --quick a made-up one.")] = None,
    windows: Annotated[int, typer.Option(help="Windows of equally many likes, in time order.")] = 5,
    hold_out: Annotated[int, typer.Option(help="One like in so many is tested and never taught.")] = 5,
    texts: Annotated[
        str, typer.Option(help="Item texts: zero-shot, none, or a store for the vectors of its current model.")
    ] = "zero-shot",
    repeats: Annotated[
        bool, typer.Option("--repeats", help="Allow in lists what a user liked elsewhere (shops re-buy).")
    ] = False,
    ease_most_items: Annotated[int, typer.Option(help="Leave the refit out with more candidates than this.")] = 4_000,
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
    """Teach window by window, and ask held-out likes of all windows after each: a matrix for every row.

    Read down a column: a fall below the diagonal is forgetting, what stands above it was known before it was taught.
    Writes forgetting.html, .md and .json.

    \b
    Example:
      anabranch evaluate forgetting --data movielens-100k
      anabranch evaluate forgetting --quick --json
    """
    import msgspec

    from anabranch import evaluation_forgetting as asked
    from anabranch.evaluation_forgetting_report import compose, findings
    from anabranch.evaluation_stream import texts_of
    from anabranch.report import write_report
    from common.datasets.registry import load_dataset
    from common.store import write_atomic
    from stream.forgetting import ForgettingSettings

    out = Output(as_json=as_json)
    settings = asked.ForgettingEvaluationSettings(
        ForgettingSettings(windows=windows, every=hold_out, repeats=repeats, seed=seed),
        seed=seed,
        ease_most_items=ease_most_items,
        events=events or None,
        rows=tuple(word.strip() for word in rows.split(",") if word.strip()),
    )
    settings = asked.quick(settings) if quick else settings
    folder = report or store / "report"
    with out.progress() as progress:
        name = data or (asked.QUICK_DATA if quick else DATA)
        dataset = load_dataset(name, seed=seed, progress=progress, notice=out.note)
        vectors = texts_of(
            dataset, texts, store / "cache", encoder=encoder, device=device, seed=seed, progress=progress
        )
        payload = asked.evaluate_forgetting(dataset, settings, vectors, progress=progress, note=out.note).as_json()
    markdown, page = write_report(compose(payload), folder, "forgetting")
    payload |= {"findings": findings(payload)[0], "report": str(page), "report_markdown": str(markdown)}
    write_atomic(folder / "forgetting.json", msgspec.json.format(msgspec.json.encode(payload)))
    out.result(payload, lambda console: draw(console, payload))


def draw(console: Console, payload: dict[str, Any]) -> None:
    """Draw each row's matrix, the measures, the findings, and where the report is."""
    from anabranch.evaluation_forgetting_report import label, matrix_table, signed

    protocol = payload["protocol"]
    for name, row in payload["rows"].items():
        found = matrix_table(name, row, protocol["k"])
        matrix = Table(title=found.caption, title_justify="left")
        for column in found.header:
            matrix.add_column(column, justify="right")
        for cells in found.rows:
            matrix.add_row(*cells)
        console.print(matrix)
    measures = Table(title=f"{protocol['data']}, {protocol['test_events']} likes held out", title_justify="left")
    for column in ("", "recall at the end", "backward transfer", "forward transfer"):
        measures.add_column(column, justify="left" if not column else "right")
    for name, row in payload["rows"].items():
        measures.add_row(label(name), f"{row['average']['value']:.4f}", signed(row["backward"]), signed(row["forward"]))
    console.print(measures)
    for sentence in payload["findings"]:
        console.print(f"- {sentence}", markup=False)
    console.print(f"report: {payload['report']}", markup=False, soft_wrap=True)
