"""`anabranch stream replay-dead-letters`: what could not be read, listed, mended, sent again."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from anabranch.commands.stream_options import (
    SERVERS,
    TOPIC,
    JsonFlag,
    SecurityOption,
    ServersOption,
    TopicOption,
    quieten_kafka,
)
from anabranch.output import Output

_SHOWN = 60
"""Characters of a value in the table; all of it is in the JSON and in a saved file."""


def replay_dead_letters(
    *,
    servers: ServersOption = SERVERS,
    topic: TopicOption = TOPIC,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the letters with their reasons; send none.")] = False,
    save: Annotated[Path | None, typer.Option(help="Write those not yet sent again as JSON lines, to mend.")] = None,
    mended: Annotated[
        Path | None, typer.Option(help="JSON lines with partition, offset and the new value; only these are sent.")
    ] = None,
    max_attempts: Annotated[int, typer.Option(min=1, help="Letters that were tried so often are left.")] = 5,
    security: SecurityOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Send what could not be read to its topic again, each letter once, as it is or mended.

    \b
    Example:
      anabranch stream replay-dead-letters --dry-run --save letters.jsonl
      anabranch stream replay-dead-letters --mended letters.jsonl
    """
    from stream.kafka_log import KafkaLog
    from stream.replay import read_letters, read_mended, replay_letters, save_letters
    from stream.security import read_security

    out = Output(as_json=as_json)
    quieten_kafka()
    log = KafkaLog(servers, read_security(security))
    values = None if mended is None else read_mended(mended)
    letters = read_letters(log, topic)
    if save is not None:
        save_letters(save, [letter for letter in letters if not letter.replayed])
    payload: dict[str, Any] = {"dry_run": dry_run, "letters": [letter.as_json() for letter in letters]}
    if not dry_run and letters:
        payload |= asdict(replay_letters(log, topic, mended=values, max_attempts=max_attempts))
    out.result(payload, lambda console: _draw(console, payload, topic))


def _draw(console: Console, payload: dict[str, Any], topic: str) -> None:
    if not payload["letters"]:
        console.print(f"no dead letters of {topic}")
        return
    if not payload["dry_run"]:
        console.print(
            f"{payload['replayed']} of {payload['found']} letters are on {topic} again;"
            f" {payload['replayed_before']} were before, {payload['given_up']} were tried too often"
        )
        return
    table = Table("partition", "offset", "tried", "sent again", "reason", "value")
    for letter in payload["letters"]:
        value = str(letter.get("value", letter.get("value_base64")))
        table.add_row(
            str(letter["partition"]),
            str(letter["offset"]),
            str(letter["attempts"]),
            "yes" if letter["replayed"] else "",
            escape(f"{letter['error']}: {letter['reason']}"),
            escape(value[:_SHOWN]),
        )
    console.print(table)
