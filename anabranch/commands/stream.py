"""`anabranch stream` and `anabranch broker`: clicks in, learned factors out."""

import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from anabranch.output import Output

if TYPE_CHECKING:
    from common.events import Interaction
    from stream.settings import LearnReport
    from stream.state import Served

app = typer.Typer(no_args_is_help=True, help="The click pipeline: send events, learn from them, see how far it is.")

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
ServersOption = Annotated[str, typer.Option("--bootstrap-servers", help="Kafka's HOST:PORT, several apart by commas.")]
TopicOption = Annotated[str, typer.Option(help="Topic of the events.")]
StoreOption = Annotated[Path, typer.Option(help="Folder of models and checkpoints.")]
LearnerKind = Literal["mf", "blend"]
LearnerOption = Annotated[
    LearnerKind,
    typer.Option(help="blend: neighbours, factors, texts and popularity, weighted by their hits. mf: factors only."),
]
RepeatsOption = Annotated[
    bool, typer.Option("--repeats", help="blend: what a user liked before may be shown again (shops re-buy).")
]
TtlOption = Annotated[
    float, typer.Option(min=0, help="What is learned of an item is dropped after so many days without it; 0 never.")
]
AdmitOption = Annotated[int, typer.Option(min=1, help="An item is learned from its so-manieth event on.")]
EvaluateOption = Annotated[
    int, typer.Option(min=0, help="Test every so many events before learning them; 0 tests none.")
]
BoostOption = Annotated[
    float, typer.Option(help="Times the learning rates, for 300 events after a drift alarm; 1 is off.")
]
OnNewTopicOption = Annotated[
    Literal["fail", "continue"],
    typer.Option(help="When the topic was made anew: fail, or continue with what was learned."),
]
SERVERS = "127.0.0.1:9092"
TOPIC = "clicks"
STORE = Path("anabranch-store")


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Give a callable that turns True at the first Ctrl-C or SIGTERM; a second Ctrl-C interrupts at once."""
    asked = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _quieten_kafka() -> None:
    """Leave the client's retries out of people's sight; what cannot be mended is raised as one line."""
    logging.getLogger("kafka").setLevel(logging.CRITICAL)


def _events_of(data: str, seed: int, out: Output) -> "Iterable[Interaction]":
    """Return the events of a data set, a JSON-lines file or, for "-", stdin."""
    if data == "-":
        return _decoded("stdin", sys.stdin.buffer)
    path = Path(data)
    if path.suffix in (".jsonl", ".ndjson") or path.is_file():
        return _read_file(path)
    from common.datasets.registry import load_dataset

    with out.progress() as report:
        return load_dataset(data, seed=seed, progress=report, notice=out.note).interactions


def _read_file(path: Path) -> "Iterator[Interaction]":
    from common.errors import DataError

    try:
        with path.open("rb") as lines:
            yield from _decoded(str(path), lines)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}", expected="a file of one JSON event a line"
        ) from error


def _decoded(name: str, lines: Iterable[bytes]) -> "Iterator[Interaction]":
    from common.errors import MalformedEvent
    from common.events import decode_event

    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield decode_event(line)
        except MalformedEvent as error:
            raise MalformedEvent(
                f"line {number} of {name}: {error}", consequence="the lines before it were sent"
            ) from error


@app.command()
def produce(
    *,
    data: Annotated[str, typer.Option(help="Name of a data set, a .jsonl file of events, or - for stdin.")],
    servers: ServersOption = SERVERS,
    topic: TopicOption = TOPIC,
    partitions: Annotated[
        int,
        typer.Option(
            min=1,
            help="Partitions of a topic that is created; with more than one, users' events mix anew each time.",
        ),
    ] = 1,
    speed: Annotated[str, typer.Option(help="realtime, max, or how many times real time.")] = "max",
    limit: Annotated[int | None, typer.Option(min=0, help="Send at most so many events.")] = None,
    start_at: Annotated[int, typer.Option(min=0, help="Skip so many events: go on after an interrupted run.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of a synthetic data set.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Send events to a topic, each acknowledged; Ctrl-C ends it in good order.

    \b
    Example:
      anabranch stream produce --data movielens-100k --limit 10000
    """
    from stream.kafka_log import KafkaLog
    from stream.producer import parse_speed
    from stream.producer import produce as send

    out = Output(as_json=as_json)
    _quieten_kafka()
    times = parse_speed(speed)
    events = _events_of(data, seed, out)
    with stop_on_signals() as stopping, out.progress() as progress:
        report = send(
            events,
            log=KafkaLog(servers),
            topic=topic,
            partitions=partitions,
            speed=times,
            start_at=start_at,
            limit=limit,
            stopping=stopping,
            progress=progress,
        )

    def draw(console: Console) -> None:
        console.print(f"{report.acked} of {report.sent} events are on {topic} at {servers}, in {report.seconds:.1f} s")

    out.result(asdict(report), draw)


@app.command()
def learn(
    *,
    servers: ServersOption = SERVERS,
    topic: TopicOption = TOPIC,
    store: StoreOption = STORE,
    from_catalogue: Annotated[
        bool, typer.Option(help="Take every item of the store's catalogue for a candidate, where it has one.")
    ] = True,
    until_events: Annotated[
        int | None, typer.Option(min=0, help="Stop after so many events in all, earlier runs included.")
    ] = None,
    idle_timeout: Annotated[
        float | None, typer.Option(min=0.1, help="Stop after so many seconds without an event.")
    ] = None,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Events between two checkpoints.")] = 5000,
    checkpoint_seconds: Annotated[
        float, typer.Option(min=0.01, help="Seconds between two checkpoints, if that is sooner.")
    ] = 5.0,
    on_new_topic: OnNewTopicOption = "fail",
    on_lost_offset: Annotated[
        Literal["fail", "earliest", "latest"],
        typer.Option(help="When the broker no longer has the next event: fail, earliest or latest."),
    ] = "fail",
    evaluate_every: EvaluateOption = 1,
    learner: LearnerOption = "blend",
    repeats: RepeatsOption = False,
    factors: Annotated[int, typer.Option(min=1, help="Length of an item's factors.")] = 64,
    negatives: Annotated[int, typer.Option(min=1, help="Sampled negatives an event.")] = 50,
    ttl_days: TtlOption = 0.0,
    admit_at: AdmitOption = 1,
    drift_boost: BoostOption = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the learner.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Learn from every event of a topic, from where the store's last checkpoint stands.

    Without --until-events or --idle-timeout it runs until Ctrl-C or SIGTERM; either stores a checkpoint first.

    \b
    Example:
      anabranch stream learn --idle-timeout 10
    """
    from anabranch.item_texts import NewestTexts
    from stream.consumer import StreamWorker
    from stream.settings import WorkerSettings

    out = Output(as_json=as_json)
    _quieten_kafka()
    settings = WorkerSettings(
        servers=servers,
        topic=topic,
        store=store,
        checkpoint_events=checkpoint_every,
        checkpoint_seconds=checkpoint_seconds,
        until_events=until_events,
        idle_timeout_s=idle_timeout,
        on_new_topic=on_new_topic,
        on_lost_offset=on_lost_offset,
        evaluate_every=evaluate_every,
    )
    fresh = _fresh_learner(learner, factors, negatives, repeats, ttl_days, admit_at, drift_boost, seed)
    items = _catalogue_ids(store) if from_catalogue else ()
    texts = NewestTexts(store, out.note) if from_catalogue and learner == "blend" else lambda: None
    with stop_on_signals() as stopping, out.progress() as progress:
        worker = StreamWorker(
            settings, fresh, items=items, texts=texts, stopping=stopping, notice=out.note, progress=progress
        )
        report = worker.run()
    out.result(asdict(report), lambda console: _draw_report(console, report, store))


def _fresh_learner(
    kind: LearnerKind,
    factors: int,
    negatives: int,
    repeats: bool,
    ttl_days: float,
    admit_at: int,
    drift_boost: float,
    seed: int,
) -> "Served":
    from stream.learner.blend import Blend
    from stream.learner.mf import MF

    if kind == "blend":
        return Blend(
            n_factors=factors,
            negatives=negatives,
            repeats=repeats,
            ttl_days=ttl_days,
            admit_at=admit_at,
            drift_boost=drift_boost,
            seed=seed,
        )
    return MF(
        n_factors=factors, negatives=negatives, ttl_days=ttl_days, admit_at=admit_at, drift_boost=drift_boost, seed=seed
    )


def _catalogue_ids(store: Path) -> tuple[str, ...]:
    from common.errors import NoModel
    from server.registry import Registry

    try:
        return Registry.open(store).catalogue.ids
    except NoModel:
        return ()


def _draw_report(console: Console, report: "LearnReport", store: Path) -> None:
    console.print(
        f"{report.events} events ({report.resumed_from} of them by earlier runs): {report.learned} learned,"
        f" {report.duplicates_skipped} duplicates skipped, {report.dead_letters} dead letters,"
        f" {report.drift_alarms} drift alarms, in {report.seconds:.1f} s; stored in {store}"
    )
    table = Table("tested before learning", "recall@10", "95% CI", "NDCG@10", "coverage", "us/event")
    for name, row in report.metrics.items():
        if row["evaluated"]:
            low, high = row["ci95"]
            table.add_row(
                name,
                f"{row['recall@10']:.4f}",
                f"{low:.4f} to {high:.4f}",
                f"{row['ndcg@10']:.4f}",
                f"{row['coverage']:.2f}",
                f"{row['us_per_event']:.0f}",
            )
    if table.row_count:
        console.print(table)


@app.command()
def status(*, store: StoreOption = STORE, as_json: JsonFlag = False) -> None:
    """Show the last checkpoint: events, offsets, age.

    \b
    Example:
      anabranch stream status --store anabranch-store
    """
    from common.clock import wall_clock
    from common.errors import NoModel
    from stream.checkpoint import CheckpointStore
    from stream.snapshot import current_snapshot

    out = Output(as_json=as_json)
    checkpoint = CheckpointStore(store).newest(out.note)
    if checkpoint is None:
        raise NoModel(f"no checkpoint in {store}", mend="learn something first: anabranch stream learn")
    age = max(0, wall_clock() - checkpoint.created_at) / 1000
    counts = {
        name: checkpoint.details[name]
        for name in ("events", "learned", "duplicates_skipped", "dead_letters", "drift_alarms", "offsets", "topic_ids")
    }
    payload: dict[str, Any] = {
        "store": str(store),
        "checkpoint": checkpoint.sequence,
        "snapshot": current_snapshot(store),
        "age_seconds": age,
        "bytes": checkpoint.size,
        **counts,
    }

    def draw(console: Console) -> None:
        console.print(f"checkpoint {checkpoint.sequence}, {age:.0f} s old, {checkpoint.size / 1e6:.1f} MB")
        console.print(f"{counts['events']} events: {counts['learned']} learned, {counts['dead_letters']} dead letters")
        for name, parts in counts["offsets"].items():
            for part, offset in parts.items():
                console.print(f"{name} partition {part}: next offset {offset}")

    out.result(payload, draw)


def broker(
    *,
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port on loopback.")] = 9092,
    as_json: JsonFlag = False,
) -> None:
    """Run a Kafka-compatible broker on this machine until Ctrl-C; what it holds is gone then.

    \b
    Example:
      anabranch broker --port 9092
    """
    import time

    from common.errors import BrokerUnavailable
    from stream.broker import EmbeddedBroker

    out = Output(as_json=as_json)
    with stop_on_signals() as stopping, EmbeddedBroker(port) as running:
        servers = running.bootstrap_servers
        out.result({"bootstrap_servers": servers}, lambda console: console.print(f"broker on {servers}"))
        while not stopping():
            if not running.running:
                raise BrokerUnavailable(f"the broker on {servers} ended by itself", mend="start it again")
            time.sleep(0.2)
    out.note("stopped")
