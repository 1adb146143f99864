"""`anabranch stream` and `anabranch broker`: clicks in, learned factors out."""

from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from anabranch.commands import stream_letters, stream_produce, stream_status
from anabranch.commands.stream_options import (
    SERVERS,
    TOPIC,
    ClientOption,
    JsonFlag,
    LogOption,
    SecurityOption,
    ServersOption,
    TopicOption,
    quieten_kafka,
    stop_on_signals,
)
from anabranch.commands.stream_status import STORE, StoreOption
from anabranch.output import Output

if TYPE_CHECKING:
    from stream.settings import LearnReport, WorkerSettings
    from stream.state import Served

app = typer.Typer(no_args_is_help=True, help="The click pipeline: send events, learn from them, see how far it is.")
app.command("produce")(stream_produce.produce)
app.command("replay-dead-letters")(stream_letters.replay_dead_letters)
app.command("status")(stream_status.status)

LearnerKind = Literal["mf", "blend", "pointwise"]
LearnerOption = Annotated[
    LearnerKind,
    typer.Option(
        help="blend: neighbours, factors, texts and popularity, weighted by their hits. mf: factors only."
        " pointwise: river's BiasedMF, compiled."
    ),
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
ReplayOption = Annotated[
    int, typer.Option(min=0, max=1_000, help="Learn again, now and then, one of so many kept likes a user; 0 is off.")
]
OnNewTopicOption = Annotated[
    Literal["fail", "continue"],
    typer.Option(help="When the topic was made anew: fail, or continue with what was learned."),
]
UntilOption = Annotated[
    int | None, typer.Option(min=0, help="Stop after so many events in all, earlier runs included.")
]
IdleOption = Annotated[float | None, typer.Option(min=0.1, help="Stop after so many seconds without an event.")]
OnLostOption = Annotated[
    Literal["fail", "earliest", "latest"],
    typer.Option(help="When the broker no longer has the next event: fail, earliest or latest."),
]
CatalogueOption = Annotated[
    bool, typer.Option(help="Take every item of the store's catalogue for a candidate, where it has one.")
]
SecondsOption = Annotated[
    float, typer.Option(min=0.01, help="Seconds between two checkpoints, if that is sooner; more where one takes long.")
]
BadShareOption = Annotated[
    float, typer.Option(min=0, max=1, help="Stop when more than this share of 200 records is bad; 1 never stops.")
]
ScaleOutOption = Annotated[
    bool, typer.Option("--scale-out", help="Share the topic's partitions with other workers on the same store.")
]
EveryOption = Annotated[
    int | None, typer.Option(min=1, help="Events between two checkpoints; 5000, or 1000 with --scale-out.")
]
GroupOption = Annotated[str, typer.Option(help="Kafka consumer group: of the workers, and for dashboards.")]
MemberOption = Annotated[
    str | None,
    typer.Option(
        help="With --scale-out: a name kept over restarts; its partitions wait for it while the session lasts."
    ),
]
SessionOption = Annotated[
    float, typer.Option(min=3, help="With --scale-out: seconds after which a silent worker is taken for dead.")
]
MetricsOption = Annotated[
    int | None, typer.Option("--metrics-port", min=0, max=65_535, help="Answer Prometheus at this port of loopback.")
]
NiceOption = Annotated[
    int,
    typer.Option(min=0, max=20, help="Give way to others, such as the service; 20: take only what they leave."),
]
LONE_EVENTS, SHARED_EVENTS = 5000, 1000
"""Events between two checkpoints. Workers hear of each other at these, so several of them make more."""


@app.command()
def learn(
    *,
    servers: ServersOption = SERVERS,
    topic: TopicOption = TOPIC,
    store: StoreOption = STORE,
    from_catalogue: CatalogueOption = True,
    until_events: UntilOption = None,
    idle_timeout: IdleOption = None,
    scale_out: ScaleOutOption = False,
    group: GroupOption = "anabranch",
    member: MemberOption = None,
    session_seconds: SessionOption = 10.0,
    checkpoint_every: EveryOption = None,
    checkpoint_seconds: SecondsOption = 5.0,
    on_new_topic: OnNewTopicOption = "fail",
    on_lost_offset: OnLostOption = "fail",
    bad_share: BadShareOption = 0.5,
    metrics_port: MetricsOption = None,
    nice: NiceOption = 0,
    security: SecurityOption = None,
    client: ClientOption = "kafka-python",
    log_format: LogOption = "text",
    evaluate_every: EvaluateOption = 1,
    learner: LearnerOption = "blend",
    repeats: RepeatsOption = False,
    factors: Annotated[int, typer.Option(min=1, help="Length of an item's factors.")] = 64,
    negatives: Annotated[int, typer.Option(min=1, help="Sampled negatives an event.")] = 50,
    ttl_days: TtlOption = 0.0,
    admit_at: AdmitOption = 1,
    drift_boost: BoostOption = 1.0,
    replay: ReplayOption = 0,
    seed: Annotated[int, typer.Option(help="Seed of the learner.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Learn from every event of a topic, from where the store's last checkpoint stands.

    Without --until-events or --idle-timeout it runs until Ctrl-C or SIGTERM; either stores a checkpoint first.
    One worker learns all of a topic alone. With --scale-out several share its partitions, come and go as they like.

    \b
    Example:
      anabranch stream learn --idle-timeout 10
      anabranch stream learn --scale-out       # in two terminals: each takes half of the partitions
    """
    from stream.security import read_security
    from stream.settings import WorkerSettings

    out = Output(as_json=as_json, log_format=log_format)
    with out.failing():
        settings = WorkerSettings(
            servers=servers,
            topic=topic,
            store=store,
            checkpoint_events=checkpoint_every or (SHARED_EVENTS if scale_out else LONE_EVENTS),
            checkpoint_seconds=checkpoint_seconds,
            until_events=until_events,
            idle_timeout_s=idle_timeout,
            on_new_topic=on_new_topic,
            on_lost_offset=on_lost_offset,
            evaluate_every=evaluate_every,
            bad_share=bad_share,
            group=group,
            member=member,
            session_seconds=session_seconds,
            security=read_security(security),
            client=client,
        )
        fresh = _fresh_learner(learner, factors, negatives, repeats, ttl_days, admit_at, drift_boost, replay, seed)
        report = _work(out, settings, fresh, from_catalogue, metrics_port, nice, scale_out=scale_out)
    out.result(asdict(report), lambda console: _draw_report(console, report, store))


def _work(
    out: Output,
    settings: "WorkerSettings",
    fresh: "Served",
    from_catalogue: bool,
    metrics_port: int | None,
    nice: int,
    *,
    scale_out: bool,
) -> "LearnReport":
    """Run one worker until it ends, watched where a port is given."""
    from anabranch.item_texts import NewestTexts
    from common.errors import InvalidSetting
    from common.memory import keep_freed_memory
    from common.priority import give_way
    from stream.consumer import StreamWorker
    from stream.group_worker import GroupWorker
    from stream.learner.blend import Blend
    from stream.metrics import WorkerMetrics

    if settings.member is not None and not scale_out:
        raise InvalidSetting("--member without --scale-out", expected="both: a lone worker is in no group")
    quieten_kafka()
    give_way(nice)
    keep_freed_memory()  # each snapshot copies what is served
    store = settings.store
    texts = NewestTexts(store, out.note) if from_catalogue and isinstance(fresh, Blend) else lambda: None
    metrics = None if metrics_port is None else WorkerMetrics()
    with ExitStack() as stack:
        stopping = stack.enter_context(stop_on_signals())
        if metrics is not None and metrics_port is not None:
            port = stack.enter_context(metrics.served(metrics_port))
            out.note(f"figures for Prometheus at http://127.0.0.1:{port}/metrics")
        return (GroupWorker if scale_out else StreamWorker)(
            settings,
            fresh,
            items=_catalogue_ids(store) if from_catalogue else (),
            texts=texts,
            stopping=stopping,
            notice=out.note,
            progress=stack.enter_context(out.progress()),
            meter=metrics,
        ).run()


def _fresh_learner(
    kind: LearnerKind,
    factors: int,
    negatives: int,
    repeats: bool,
    ttl_days: float,
    admit_at: int,
    drift_boost: float,
    replay: int,
    seed: int,
) -> "Served":
    from common.errors import InvalidSetting
    from stream.learner.blend import Blend
    from stream.learner.mf import MF
    from stream.learner.pointwise import PointwiseMF

    if kind == "pointwise":
        if (repeats, ttl_days, admit_at, drift_boost, replay) != (False, 0.0, 1, 1.0, 0):
            raise InvalidSetting(
                "--learner pointwise with --repeats, --ttl-days, --admit-at, --drift-boost or --replay",
                expected="none of these, or --learner mf or blend",
            )
        return PointwiseMF(n_factors=factors, negatives=negatives, seed=seed)
    make = partial(Blend, repeats=repeats) if kind == "blend" else MF
    return make(
        n_factors=factors,
        negatives=negatives,
        ttl_days=ttl_days,
        admit_at=admit_at,
        drift_boost=drift_boost,
        replay=replay,
        seed=seed,
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
