"""`anabranch demo`: all of it on one machine."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from anabranch.commands.simulate import draw as draw_federated
from anabranch.output import Output, program

STORE = Path("anabranch-store")
QUICK_STORE = Path("anabranch-store-quick")


def demo(
    data: Annotated[str, typer.Option(help="Data set; see `anabranch data list`.")] = "movielens-100k",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds and events, under a minute.")] = False,
    store: Annotated[
        Path | None, typer.Option(help=f"Folder of models; default {STORE}, with --quick {QUICK_STORE}.")
    ] = None,
    epsilon: Annotated[float, typer.Option(help="Privacy budget of every client.")] = 8.0,
    query: Annotated[str | None, typer.Option(help="The text query to ask.")] = None,
    bootstrap_servers: Annotated[str | None, typer.Option(help="Your Kafka instead of the embedded broker.")] = None,
    encoder: Annotated[str, typer.Option(help="minilm, a Hugging Face BERT, or a folder.")] = "minilm",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    seed: Annotated[int, typer.Option(help="The same seed gives the same model.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Run the main job on real data: federated rounds, a clickstream through Kafka, questions over HTTP.

    A second run goes on from the store.

    \b
    Example:
      anabranch demo
      anabranch demo --quick --json
    """
    out = Output(as_json=as_json)
    from dataclasses import replace

    from anabranch.demo import full_settings, quick_settings, run_demo
    from anabranch.simulation import SimulationSettings, privacy_terms
    from common.datasets.registry import load_dataset

    base = SimulationSettings(encoder=encoder, device=device, seed=seed)
    rate = base.privacy.sample_rate
    base = replace(base, privacy=privacy_terms("user", epsilon=epsilon, delta=base.privacy.delta, sample_rate=rate))
    settings = replace((quick_settings if quick else full_settings)(base), query=query, servers=bootstrap_servers)
    folder = store or (QUICK_STORE if quick else STORE)
    with out.progress() as report:
        dataset = load_dataset(data, seed=seed, progress=report, notice=out.note)
        result = run_demo(dataset, folder, settings, progress=report, note=out.note)
    titles = {item.item_id: item.title for item in dataset.catalogue}
    payload = result.as_json()
    out.result(payload, lambda console: _draw(console, payload, titles, folder))


def _draw(console: Console, payload: dict[str, Any], titles: dict[str, str], store: Path) -> None:
    console.print()
    draw_federated(console, payload["federated"])
    console.print()
    _draw_stream(console, payload["stream"])
    for name, answer in payload["query"].items():
        console.print()
        _draw_answer(console, name, answer, titles)
    seconds = payload["seconds"]
    console.print(
        f"\n{seconds['total']:.0f} s: federated {seconds['federated']:.0f}, stream {seconds['stream']:.0f}, "
        f"questions {seconds['query']:.0f}. Everything is in {payload['store']}.\n"
    )
    run, at = program(), "" if store == STORE else f" --store {store}"
    console.print("Try next:")
    for line in (
        f'{run} recommend --query "a heist that goes wrong" --explain{at}',
        f"{run} serve{at}                  # then: curl http://127.0.0.1:8000/v1/model",
        f"{run} model show{at}             # the version, its parents, its privacy claim",
        f"{run} simulate --privacy off --store try-without-privacy   # what the guarantee costs",
    ):
        console.print(f"  {line}", markup=False, soft_wrap=True)


def _draw_stream(console: Console, stream: dict[str, Any]) -> None:
    table = Table(title="stream: each click first predicted, then learned", title_justify="left")
    for column in ("", "recall@10", "ndcg@10", "95% interval of recall"):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in stream["metrics"].items():
        low, high = row["ci95"]
        label = "the blend, with texts" if name == "ours" else name
        table.add_row(label, f"{row['recall@10']:.4f}", f"{row['ndcg@10']:.4f}", f"{low:.4f} to {high:.4f}")
    console.print(table)
    console.print(
        f"{stream['events']} events, {stream['learned']} learned, {stream['duplicates_skipped']} duplicates, "
        f"{stream['dead_letters']} dead letters; state {stream['state_sha256'][:12]}"
    )


def _draw_answer(console: Console, name: str, answer: dict[str, Any], titles: dict[str, str]) -> None:
    question = answer["question"]
    asked = {
        "known_user": lambda: f"user {question['user_id']}, known from the stream",
        "new_user": lambda: "a new user who liked " + "; ".join(titles[item] for item in question["history"]),
        "text": lambda: f'the text "{question["query"]}"',
    }[name]()
    table = Table(title=f"for {escape(asked)} (model {answer['model_version']})", title_justify="left")
    table.add_column("", justify="right")
    table.add_column("title")
    table.add_column("score", justify="right")
    table.add_column("mostly because of")
    for item in answer["items"]:
        reasons = sorted(item.get("reasons", []), key=lambda reason: -reason["weight"])
        why = escape(reasons[0]["text"]) if reasons else ""
        table.add_row(str(item["rank"]), escape(item["title"]), f"{item['score']:.2f}", why)
    console.print(table)
