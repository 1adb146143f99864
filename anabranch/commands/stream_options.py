"""What the commands of `anabranch stream` share: options, signals, and a quiet client."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import typer

from anabranch.output import LogFormat

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
ServersOption = Annotated[str, typer.Option("--bootstrap-servers", help="Kafka's HOST:PORT, several apart by commas.")]
TopicOption = Annotated[str, typer.Option(help="Topic of the events.")]
SecurityOption = Annotated[
    Path | None, typer.Option("--security", help="TOML file with the broker's TLS and SASL settings.")
]
ClientOption = Annotated[
    Literal["kafka-python", "librdkafka"],
    typer.Option(help="Library that speaks to Kafka; the extra `fast` has librdkafka."),
]
LogOption = Annotated[LogFormat, typer.Option("--log-format", help="How stderr is written: text, or JSON lines.")]
SERVERS = "127.0.0.1:9092"
TOPIC = "clicks"


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


def quieten_kafka() -> None:
    """Leave the client's retries out of people's sight; what cannot be mended is raised as one line."""
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
