"""Sends dead letters to their topic again, each at most once, as they are or mended.

A replay writes the record to its topic and a note of it to `<topic>.replayed` in one transaction, so the two are there
together or not at all: a replay that is killed, or run twice, repeats nothing. Copies of one letter (a worker that died
between sending and storing sends it again) are told by where the record came from. A record that fails once more comes
back as another letter, with one more attempt, from its new place.
"""

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.errors import DataError, InvalidSetting, MalformedEvent, UnknownName
from common.events import decode_event
from stream.deadletter import ATTEMPTS, attempts_of
from stream.kafka_log import partition_of
from stream.source import Log, Record, TransactionalSink, read_to_end
from stream.topics import dead_topic, replayed_topic

MAX_ATTEMPTS = 5
_BATCH = 500
"""Letters in one transaction."""

Place = tuple[int, int]
"""Partition and offset of a record on its topic."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One record that could not be used, as the dead-letter topic has it.

    Parameters
    ----------
    partition, offset
        Where it was on its topic.
    key, value
        Its bytes.
    error, reason
        Why it could not be used.
    attempts
        How often it was tried.
    replayed
        Whether it was sent again.
    """

    partition: int
    offset: int
    key: bytes | None
    value: bytes
    error: str
    reason: str
    attempts: int
    replayed: bool

    @property
    def place(self) -> Place:
        """Partition and offset."""
        return self.partition, self.offset

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values; `value` is text, or `value_base64` where it is none."""
        try:
            shown = {"value": self.value.decode()}
        except UnicodeDecodeError:
            shown = {"value_base64": base64.b64encode(self.value).decode()}
        return {
            "partition": self.partition,
            "offset": self.offset,
            "attempts": self.attempts,
            "error": self.error,
            "reason": self.reason,
            "replayed": self.replayed,
            **shown,
        }


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What a replay did.

    Parameters
    ----------
    found
        Letters on the dead-letter topic, copies not counted.
    replayed
        Sent again now.
    replayed_before
        Sent again by earlier replays.
    given_up
        Left, because they were tried too often.
    """

    found: int
    replayed: int
    replayed_before: int
    given_up: int


def read_letters(log: Log, topic: str) -> list[Letter]:
    """Return the dead letters of a topic, each once, in the order in which they came; none where there are none.

    Raises
    ------
    BrokerUnavailable
        When no broker answers.
    """
    done = {place for record in _records(log, replayed_topic(topic)) if (place := _source(record, topic))}
    letters: dict[Place, Letter] = {}
    for record in _records(log, dead_topic(topic)):
        place = _source(record, topic)
        if place is None or place in letters:
            continue
        texts = {name: value.decode("utf-8", "replace") for name, value in record.headers}
        letters[place] = Letter(
            *place,
            record.key,
            record.value or b"",
            texts.get("error", ""),
            texts.get("reason", ""),
            attempts_of(record.headers),
            place in done,
        )
    return list(letters.values())


def _records(log: Log, name: str) -> list[Record]:
    try:
        info = log.await_topic(name, 0)
    except UnknownName:
        return []
    source = log.source(name, "anabranch-replay")
    try:
        return list(read_to_end(source, info.partitions, {}))
    finally:
        source.close()


def _source(record: Record, topic: str) -> Place | None:
    """Return where a record came from; None for what somebody else wrote."""
    texts = dict(record.headers)
    partition, offset = texts.get("source.partition", b""), texts.get("source.offset", b"")
    if texts.get("source.topic") != topic.encode() or not (partition.isdigit() and offset.isdigit()):
        return None
    return int(partition), int(offset)


def replay_letters(
    log: Log, topic: str, *, mended: Mapping[Place, bytes] | None = None, max_attempts: int = MAX_ATTEMPTS
) -> ReplayReport:
    """Send the letters that were not sent again yet.

    Parameters
    ----------
    log
        Where the topics are.
    topic
        The topic that the letters came from.
    mended
        Place to new value; then only these are sent. None sends all as they are.
    max_attempts
        Letters that were tried so often are left.

    Raises
    ------
    BrokerUnavailable
        When no broker answers.
    DataError
        When something is mended that is no letter.
    StreamError
        When a transaction failed; what earlier ones sent stays sent, and the next replay goes on after it.
    """
    if max_attempts < 1:
        raise InvalidSetting(f"{max_attempts} attempts", expected="1 or more")
    partitions = len(log.await_topic(topic, 0).partitions)
    log.ensure_topic(replayed_topic(topic), 1)
    # first: it ends what a replay that died had begun, so the notes read below are all there are
    sink = log.transactional_sink(f"anabranch-replay-{topic}")
    try:
        letters = read_letters(log, topic)
        if strangers := set(mended or ()) - {letter.place for letter in letters}:
            partition, offset = min(strangers)
            raise DataError(
                f"no dead letter of {topic} came from partition {partition} offset {offset}",
                consequence="nothing was sent",
                mend="list them: anabranch stream replay-dead-letters --dry-run",
            )
        open_ = [x for x in letters if not x.replayed and (mended is None or x.place in mended)]
        ready = [x if mended is None else replace(x, value=mended[x.place]) for x in open_ if x.attempts < max_attempts]
        for start in range(0, len(ready), _BATCH):
            with sink.transaction():
                for letter in ready[start : start + _BATCH]:
                    _send(sink, topic, letter, partitions)
    finally:
        sink.close()
    return ReplayReport(len(letters), len(ready), sum(x.replayed for x in letters), len(open_) - len(ready))


def _send(sink: TransactionalSink, topic: str, letter: Letter, partitions: int) -> None:
    """Send the record and the note of it."""
    place = [
        ("source.topic", topic.encode()),
        ("source.partition", str(letter.partition).encode()),
        ("source.offset", str(letter.offset).encode()),
    ]
    key, partition = letter.key, letter.partition
    try:
        user = decode_event(letter.value).user_id
    except MalformedEvent:
        user = None
    if user is not None and user.encode() != key:  # mended: it belongs beside the other records of its user
        key, partition = user.encode(), partition_of(user, partitions)
    headers = [*place, (ATTEMPTS, str(letter.attempts + 1).encode())]
    sink.send(topic, letter.value, partition=min(partition, partitions - 1), key=key, headers=headers)
    sink.send(replayed_topic(topic), b"", partition=0, headers=headers)


def save_letters(path: Path, letters: Iterable[Letter]) -> None:
    """Write letters as JSON lines, to be mended with an editor and read by `read_mended`."""
    lines = (json.dumps(letter.as_json(), ensure_ascii=False, allow_nan=False) for letter in letters)
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def read_mended(path: Path) -> dict[Place, bytes]:
    """Read JSON lines with `partition`, `offset` and `value` or `value_base64`.

    Raises
    ------
    DataError
        When the file cannot be read, or a line is not that; its number is named.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    found: dict[Place, bytes] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            place = (int(entry["partition"]), int(entry["offset"]))
            value = (
                entry["value"].encode() if "value" in entry else base64.b64decode(entry["value_base64"], validate=True)
            )
        except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
            raise DataError(
                f"line {number} of {path}: {error!r}",
                expected='{"partition": 0, "offset": 17, "value": "..."}',
                consequence="nothing was sent",
            ) from error
        found[place] = value
    return found
