"""`anabranch stream produce`: events from a data set, a file or stdin to a topic."""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

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
from anabranch.output import Output
from common.errors import InvalidSetting

if TYPE_CHECKING:
    from common.datasets.tabular import ColumnMapping
    from common.events import Interaction


PartitionsOption = Annotated[
    int,
    typer.Option(min=1, help="Partitions of a topic that is created; with more than one, users' events mix anew."),
]
SpeedOption = Annotated[str, typer.Option(help="realtime, max, or how many times real time.")]
UserOption = Annotated[str | None, typer.Option(help="Of a CSV or Parquet file: column with the user's id.")]
ItemOption = Annotated[str | None, typer.Option(help="Column with the item's id.")]
TimeOption = Annotated[str | None, typer.Option(help="Column with the time: epoch or ISO 8601.")]
ValueOption = Annotated[str | None, typer.Option(help="Column with stars or quantities.")]
ActionOption = Annotated[str | None, typer.Option(help="Column with the action, or one action for all rows.")]
JournalOption = Annotated[
    Path | None,
    typer.Option(help="File that says how far the input was sent; with it, a run that died is gone on with."),
]


def produce(
    *,
    data: Annotated[str, typer.Option(help="Data set, .jsonl file of events, CSV or Parquet file, or - for stdin.")],
    servers: ServersOption = SERVERS,
    topic: TopicOption = TOPIC,
    partitions: PartitionsOption = 1,
    speed: SpeedOption = "max",
    limit: Annotated[int | None, typer.Option(min=0, help="Send at most so many events.")] = None,
    start_at: Annotated[int, typer.Option(min=0, help="Skip so many events first.")] = 0,
    journal: JournalOption = None,
    user: UserOption = None,
    item: ItemOption = None,
    time: TimeOption = None,
    value: ValueOption = None,
    action: ActionOption = None,
    seed: Annotated[int, typer.Option(help="Seed of a synthetic data set.")] = 0,
    security: SecurityOption = None,
    client: ClientOption = "kafka-python",
    log_format: LogOption = "text",
    as_json: JsonFlag = False,
) -> None:
    """Send events to a topic, each acknowledged; Ctrl-C ends it in good order.

    With --journal the same command goes on where an earlier run stopped or died.

    \b
    Example:
      anabranch stream produce --data movielens-100k --limit 10000 --journal sent.json
      anabranch stream produce --data clicks.csv --user customer --item sku --time at --speed realtime
    """
    from stream.connect import open_log
    from stream.producer import parse_speed
    from stream.producer import produce as send
    from stream.security import read_security

    out = Output(as_json=as_json, log_format=log_format)
    quieten_kafka()
    with out.failing():
        times = parse_speed(speed)
        log = open_log(servers, read_security(security), client)
        events = _events_of(data, seed, _columns(user, item, time, value, action), out)
        with stop_on_signals() as stopping, out.progress() as progress:
            report = send(
                events,
                log=log,
                topic=topic,
                partitions=partitions,
                speed=times,
                start_at=start_at,
                limit=limit,
                journal=journal,
                stopping=stopping,
                progress=progress,
            )

    def draw(console: Console) -> None:
        before = f", {report.resumed_from} were there before" if report.resumed_from else ""
        console.print(
            f"{report.acked} of {report.sent} events are on {topic} at {servers}{before}, in {report.seconds:.1f} s"
        )

    out.result(asdict(report), draw)


def _columns(
    user: str | None, item: str | None, time: str | None, value: str | None, action: str | None
) -> "ColumnMapping | None":
    from common.datasets.tabular import ColumnMapping

    if user is None and item is None and time is None:
        if value or action:
            raise InvalidSetting("a column without --user, --item and --time", expected="all three")
        return None
    if user is None or item is None or time is None:
        raise InvalidSetting("not all of --user, --item and --time", expected="all three of a table, or none")
    return ColumnMapping(user, item, time, value=value, action=action)


def _events_of(data: str, seed: int, columns: "ColumnMapping | None", out: Output) -> "Iterable[Interaction]":
    """Return the events of a data set, a table, a JSON-lines file or, for "-", stdin."""
    if data == "-":
        return _decoded("stdin", sys.stdin.buffer)
    path = Path(data)
    if columns is not None:
        from common.datasets.tabular import read_table

        return read_table(path.name.partition(".")[0], path, columns, None, out.note).interactions
    if path.name.endswith((".csv", ".csv.gz", ".parquet")):
        raise InvalidSetting(f"a table, {path}, without its columns", mend="name them: --user, --item and --time")
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
