"""`anabranch evaluate`: a learner beside its controls, with intervals, slices and a report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from anabranch.commands import evaluate_audit, evaluate_forgetting, evaluate_stream
from anabranch.output import Output
from common.errors import InvalidSetting

if TYPE_CHECKING:
    from anabranch.evaluation import Evaluation

DATA = "movielens-100k"
STORE = Path("anabranch-evaluation")

app = typer.Typer(no_args_is_help=True, help="Measure what was learned, beside what it must be compared with.")
app.command("audit")(evaluate_audit.audit)
app.command("forgetting")(evaluate_forgetting.forgetting)
app.command("stream")(evaluate_stream.stream)


@app.command("federated")
def federated(
    data: Annotated[str | None, typer.Option(help=f"Data set; default {DATA}, with --quick a made-up one.")] = None,
    clients: Annotated[int, typer.Option(help="Nodes that the users are dealt to.")] = 10,
    cohort: Annotated[int, typer.Option(help="Nodes asked a round; 0 asks all.")] = 0,
    rounds: Annotated[int, typer.Option(help="Federated rounds of every trained row.")] = 12,
    epsilons: Annotated[str, typer.Option(help="Privacy budgets, one trained row each, by commas.")] = "1,3,8,16",
    units: Annotated[str, typer.Option(help="What is protected: user, example, client; by commas.")] = "user",
    noises: Annotated[str, typer.Option(help="Who adds the noise: local, server, shared; by commas.")] = "local",
    strategy: Annotated[str, typer.Option(help="Aggregation; see `anabranch simulate --help`.")] = "fedsvd",
    delta: Annotated[float, typer.Option(help="Delta of the guarantees; below one over a node's records.")] = 1e-4,
    sample_rate: Annotated[float, typer.Option(help="Chance of each record to take part in a step.")] = 0.4,
    window: Annotated[int, typer.Option(help="Most clicks in a record.")] = 12,
    negatives: Annotated[int, typer.Option(help="Sampled items a record.")] = 16,
    clip: Annotated[float, typer.Option(help="Bound on a record's gradient norm.")] = 0.5,
    local_steps: Annotated[int, typer.Option(help="Gradient steps a node and round.")] = 1,
    server_learning_rate: Annotated[float, typer.Option(help="Of the server's optimiser, in every row.")] = 1e-2,
    hide_cold: Annotated[float, typer.Option(help="Share of the items to hide from training, to test on them.")] = 0.2,
    evaluate_every: Annotated[int, typer.Option(help="Rounds between points of the curves; 0: about six.")] = 0,
    encoder: Annotated[str, typer.Option(help="minilm, a Hugging Face BERT, or a folder.")] = "minilm",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    seed: Annotated[int, typer.Option(help="The same seed gives the same figures.")] = 0,
    workers: Annotated[int, typer.Option(help="Worker processes; 0 means one a core.")] = 0,
    store: Annotated[Path, typer.Option(help="Folder of the trained rows; a later run goes on from it.")] = STORE,
    report: Annotated[Path | None, typer.Option(help="Folder of the report; default STORE/report.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The same in little: a minute or two.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train and compare: controls, one node with all data, federated without and with privacy.

    Takes as long as one simulation a trained row; interrupted, the same command goes on. Writes evaluation.html,
    evaluation.md and evaluation.json.

    \b
    Example:
      anabranch evaluate federated --clients 100 --cohort 20 --rounds 30
      anabranch evaluate federated --quick --json
    """
    out = Output(as_json=as_json)
    from anabranch import evaluation_settings as asked
    from anabranch.evaluation import FederatedEvaluation
    from anabranch.simulation import SimulationSettings, privacy_terms
    from common.datasets.registry import load_dataset
    from common.instructions import Objective

    base = SimulationSettings(
        clients=clients,
        cohort=cohort or clients,
        rounds=rounds,
        strategy=strategy,
        privacy=privacy_terms("user", epsilon=1.0, delta=delta, sample_rate=sample_rate),
        objective=Objective(window=window, negatives=negatives, clip=clip, local_steps=local_steps),
        server_learning_rate=server_learning_rate,
        encoder=encoder,
        device=device,
        seed=seed,
        workers=workers,
        evaluate_every=evaluate_every or max(1, rounds // 6),
        hide_cold=hide_cold,
    )
    rows = {"units": _words(units), "noises": _words(noises)}
    settings = asked.EvaluationSettings.named(base, epsilons=_numbers(epsilons), **rows)
    settings = asked.quick(settings) if quick else settings
    with out.progress() as progress:
        dataset = load_dataset(
            data or (asked.QUICK_DATA if quick else DATA), seed=seed, progress=progress, notice=out.note
        )
        evaluation = FederatedEvaluation(dataset, store, settings, progress=progress, note=out.note).run()
    _tell(out, evaluation, report or store / "report")


def _tell(out: Output, evaluation: "Evaluation", folder: Path) -> None:
    """Write the report's three files and print the result."""
    from anabranch.evaluation import save_json
    from anabranch.evaluation_report import compose, findings
    from anabranch.report import write_report

    markdown, page = write_report(compose(evaluation), folder, "evaluation")
    told = {"findings": findings(evaluation)[0], "report": str(page), "report_markdown": str(markdown)}
    payload = {**evaluation.as_json(), **told}
    save_json(payload, folder)
    out.result(payload, lambda console: draw(console, payload))


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in _words(text))
    except ValueError as error:
        raise InvalidSetting(f"epsilons {text!r}", expected="numbers with commas between, like 1,3,8") from error


def draw(console: Console, payload: dict[str, Any]) -> None:
    """Draw an evaluation's rows, its bad news, and where the report is."""
    protocol = payload["protocol"]
    title = f"{protocol['data']}, {protocol['test_events']} test events, full rank"
    table = Table(title=title, title_justify="left")
    for column in ("", "recall@10", "95% interval", "ndcg@10", "cold@10", "epsilon"):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in payload["rows"].items():
        low, high = row["ci95"]
        cold = payload["slices"]["cold"][name]["recall@10"]
        spent = row.get("run", {}).get("privacy", {}).get("epsilon")
        table.add_row(
            name,
            f"{row['recall@10']:.4f}",
            f"{low:.4f} to {high:.4f}",
            f"{row['ndcg@10']:.4f}",
            "" if cold is None else f"{cold:.4f}",
            "" if spent is None else f"{spent:.2f}",
        )
    console.print(table)
    for sentence in payload["findings"]:
        console.print(sentence, markup=False)
    console.print(f"report: {payload['report']}", markup=False, soft_wrap=True)
