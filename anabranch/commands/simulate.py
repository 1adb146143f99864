"""`anabranch simulate`: federated rounds on one machine."""

import math
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from anabranch.output import Output
from common.errors import UsageError

if TYPE_CHECKING:
    from anabranch.simulation_settings import SimulationSettings

ROWS = {
    "random": "random",
    "popularity": "popularity (clicks in the training part)",
    "zero_shot": "zero-shot text (no training)",
    "global": "global model",
}


class Effort(NamedTuple):
    """How much is done in a round, and how far it moves."""

    sample_rate: float
    local_steps: int
    client_rate: float
    server_rate: float
    window: int
    negatives: int


WITHOUT_NOISE = Effort(0.15, 8, 3.0, 0.03, 20, 32)
ONE_NOISE = Effort(0.4, 1, 1.0, 0.02, 12, 16)
NOISE_EACH = Effort(0.3, 1, 1.0, 0.01, 12, 16)


def effort_of(unit: str, noise: str, given: dict[str, Any]) -> Effort:
    """Return the effort that was given, filled up with what suits the unit and the place of the noise.

    Noise is what makes few, small, careful steps right; without it there is no reason for them.

    Raises
    ------
    UsageError
        When a rate moves nothing, or is no number.
    """
    for name in ("client_rate", "server_rate"):
        rate = given.get(name)
        if rate is not None and not 0 < rate < math.inf:
            raise UsageError(f"--{name.replace('_', '-')} {rate}", expected="a finite rate above 0")
    usual = WITHOUT_NOISE if unit == "off" else NOISE_EACH if noise == "local" else ONE_NOISE
    return usual._replace(**{name: given[name] for name in Effort._fields if given.get(name) is not None})


def simulate(
    data: Annotated[str, typer.Option(help="Data set; see `anabranch data list`.")] = "movielens-100k",
    clients: Annotated[int, typer.Option(help="Nodes that the users are dealt to.")] = 10,
    cohort: Annotated[int, typer.Option(help="Nodes asked a round, or at work at once; 0: all.")] = 0,
    rounds: Annotated[int, typer.Option(help="Federated rounds, or versions without rounds.")] = 12,
    mode: Annotated[str, typer.Option(help="sync: rounds; async: a version for every full buffer.")] = "sync",
    buffer: Annotated[int, typer.Option(help="Async: updates a version; 0: half of those at work.")] = 0,
    max_staleness: Annotated[int | None, typer.Option(help="Async: versions an update may be behind; 10.")] = None,
    participations: Annotated[int, typer.Option(help="Async: most times a node is asked; 0: 1.25 of its share.")] = 0,
    stragglers: Annotated[float, typer.Option(help="Async: share of the nodes simulated 20 times slower.")] = 0.0,
    strategy: Annotated[str, typer.Option(help="fedsvd, ffa, rolora, fedit, fedex, or a robust rule.")] = "fedsvd",
    bad_share: Annotated[float | None, typer.Option(help="Bad clients that a robust rule bears; 0.2.")] = None,
    privacy: Annotated[str, typer.Option(help="What is protected: user, example, client or off.")] = "user",
    noise: Annotated[str, typer.Option(help="Who adds noise: local (each node), server, shared (in parts).")] = "local",
    secure_aggregation: Annotated[bool, typer.Option("--secure-aggregation", help="Server sees sums alone.")] = False,
    colluders: Annotated[int, typer.Option(help="Nodes of a cohort that may help the server to cheat.")] = 0,
    min_replies: Annotated[int, typer.Option(help="Fewer updates fail a round; 0: 1, or 2/3 when secure.")] = 0,
    epsilon: Annotated[float, typer.Option(help="Budget of every client over the whole run.")] = 8.0,
    delta: Annotated[float, typer.Option(help="Delta of the guarantee; below one over a node's records.")] = 1e-4,
    sample_rate: Annotated[float | None, typer.Option(help="Chance of a record a step; 0.3 to 0.4, off 0.15.")] = None,
    window: Annotated[int | None, typer.Option(help="Most clicks in a record; 12, privacy off 20.")] = None,
    negatives: Annotated[int | None, typer.Option(help="Sampled items a record; 16, privacy off 32.")] = None,
    clip: Annotated[float, typer.Option(help="Bound on a record's gradient norm.")] = 0.5,
    anchor: Annotated[float, typer.Option(help="Pull to the round's base after each of 2 or more local steps.")] = 0.0,
    replay: Annotated[float, typer.Option(help="Chance of a record of clicks that a node held in earlier runs.")] = 0.0,
    ranks: Annotated[str, typer.Option(help="Ranks that nodes train, dealt in turn: 2,4,8; empty: the full.")] = "",
    local_steps: Annotated[int | None, typer.Option(help="Steps a node and round; 1, privacy off 8.")] = None,
    client_rate: Annotated[float | None, typer.Option(help="Of the nodes' steps; 1, privacy off 3.")] = None,
    server_rate: Annotated[float | None, typer.Option(help="Of the server; off 0.03, local 0.01, else 0.02.")] = None,
    engine: Annotated[
        str, typer.Option(help="inprocess: worker processes here; flower: its simulation on Ray.")
    ] = "inprocess",
    ray_address: Annotated[str | None, typer.Option(help="Ray cluster that runs already; none: Ray here.")] = None,
    encoder: Annotated[str, typer.Option(help="minilm, a Hugging Face BERT, or a folder.")] = "minilm",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the slowest node of a round.")] = 600.0,
    uplink: Annotated[str, typer.Option(help="How updates travel: float32, or int8, a quarter of it.")] = "float32",
    seed: Annotated[int, typer.Option(help="The same seed gives the same adapter.")] = 0,
    workers: Annotated[int, typer.Option(help="Worker processes; 0: one a core, at most 4 with a GPU.")] = 0,
    evaluate_every: Annotated[int, typer.Option(help="Publish a version every so many rounds; 0: the last.")] = 0,
    hide_cold: Annotated[float, typer.Option(help="Share of the items to hide from training, to test on them.")] = 0.0,
    since: Annotated[float, typer.Option(help="Share of the training time before which nodes hold nothing.")] = 0.0,
    until: Annotated[float, typer.Option(help="Share of the training time after which nodes hold nothing.")] = 1.0,
    patience: Annotated[int, typer.Option(help="Versions in a row that the gate holds back; then stop. 0: never.")] = 0,
    store: Annotated[Path, typer.Option(help="Folder of models.")] = Path("anabranch-store"),
    from_version: Annotated[str | None, typer.Option(help="Start a new run from it: a version, or current.")] = None,
    from_store: Annotated[Path | None, typer.Option(help="Where that version is; the same store.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last whole round.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Run federated rounds under differential privacy and publish the global model.

    \b
    Example:
      anabranch simulate --clients 10 --rounds 12 --epsilon 8 --uplink int8
      anabranch simulate --data synthetic --privacy off --store /tmp/try
      anabranch simulate --clients 100 --cohort 20 --engine flower
      anabranch simulate --mode async --clients 20 --cohort 10 --buffer 5 --stragglers 0.1
    """
    given = dict(locals())
    _run(data, store, settings_of(given), Output(as_json=as_json))


def settings_of(given: dict[str, Any]) -> "SimulationSettings":
    """Return the settings for the options of `simulate`, by name; most are named alike."""
    from anabranch.simulation_settings import SimulationSettings, asynchronous_terms, privacy_terms
    from common.instructions import Objective

    effort = effort_of(given["privacy"], given["noise"], given)
    terms = {name: given[name] for name in ("epsilon", "delta", "noise")}
    goal = {name: given[name] for name in ("clip", "anchor", "replay")} | {
        "window": effort.window,
        "negatives": effort.negatives,
        "local_steps": effort.local_steps,
        "learning_rate": effort.client_rate,
    }
    at_once = given["cohort"] or given["clients"]
    without_rounds = {name: given[name] for name in ("buffer", "max_staleness", "participations", "stragglers")}
    made = {
        "cohort": at_once,
        "asynchronous": asynchronous_terms(given["mode"], at_once=at_once, **without_rounds),
        "privacy": privacy_terms(given["privacy"], sample_rate=effort.sample_rate, **terms),
        "objective": Objective(**goal),
        "server_learning_rate": effort.server_rate,
        "ranks": ranks_in(given["ranks"]),
        "timeout_s": given["timeout"],
    }
    alike = {each.name: given[each.name] for each in fields(SimulationSettings) if each.name in given}
    return SimulationSettings(**(alike | made))


def ranks_in(text: str) -> tuple[int, ...]:
    """Read "2,4,8"; an empty text is no rank.

    Raises
    ------
    UsageError
        When it is anything else.
    """
    names = [name.strip() for name in text.split(",")] if text else []
    if not all(name.isdecimal() for name in names):
        raise UsageError(f"--ranks {text!r}", expected="whole numbers with commas between them, as 2,4,8")
    return tuple(int(name) for name in names)


def _run(data: str, store: Path, settings: "SimulationSettings", out: Output) -> None:
    from anabranch.simulation import Simulation
    from common.datasets.registry import load_dataset

    with out.progress() as report:
        dataset = load_dataset(data, seed=settings.seed, progress=report, notice=out.note)
        result = Simulation(dataset, store, settings, progress=report, note=out.note).run()
    payload = result.as_json()
    out.result(payload, lambda console: draw(console, payload))


def traffic(payload: dict[str, Any]) -> str:
    """Return in words what travelled in all."""
    from server.traffic import size_in_words

    return f"{size_in_words(payload['traffic']['down'])} down and {size_in_words(payload['traffic']['up'])} up in all"


def draw(console: Console, payload: dict[str, Any]) -> None:
    """Draw a simulation's result."""
    table = Table(title=f"model {payload['version']}, full rank over all unseen items", title_justify="left")
    for column in ("", "recall@10", "ndcg@10", "95% interval of recall"):
        table.add_column(column, justify="left" if not column else "right")
    for name, label in ROWS.items():
        row = payload["metrics"][name]
        low, high = row["ci95"]
        table.add_row(label, f"{row['recall@10']:.4f}", f"{row['ndcg@10']:.4f}", f"{low:.4f} to {high:.4f}")
    console.print(table)
    if not payload["gate"].get("promoted", True):
        console.print(f"not promoted: {payload['gate']['reason']}", markup=False)
    privacy, clients = payload["privacy"], payload["clients"]
    if privacy["epsilon"] is None:
        console.print("privacy: off, no guarantee")
    else:
        console.print(
            f"privacy: epsilon {privacy['epsilon']:.2f} (budget {privacy['budget']:g}) at delta {privacy['delta']:g}, "
            f"unit {privacy['unit']}, composed over all {payload['rounds_run']} rounds ({privacy['accountant']})"
        )
    console.print(
        f"replies: {clients['replied']} of {clients['planned']}, {clients['failed']} failed, "
        f"{len(clients['quarantined'])} quarantined; {payload['bytes_per_client'] / 1024:.0f} KiB a client and round "
        f"({payload['traffic']['uplink']}); {traffic(payload)}"
    )
