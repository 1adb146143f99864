"""Events in, records out: idempotent, keyed by user, each one acknowledged.

Records of one user keep their order. Across users it is kept only on a topic with one partition: the learned state
depends on the order in which all events are read, so a run that must come out bit for bit the same uses one.

The event's time is inside the record; the record's own timestamp is when it was sent. Kafka's retention goes by the
latter, and would delete clicks of years ago within minutes.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kafka import KafkaProducer
from kafka.errors import KafkaError
from kafka.partitioner.default import murmur2
from kafka.producer.future import FutureRecordMetadata

from common.errors import InvalidSetting, StreamError
from common.events import Interaction, encode_event
from common.progress import Progress, silent
from stream.topics import ANSWER_WITHIN_MS, broker_answers, ensure_topic

LINGER_MS = 20
BATCH_BYTES = 256 * 1024
_REPORT_EVERY = 1000
_UNCHECKED = 20_000
"""How many sends may be open before the oldest are waited for; bounds memory on endless input."""


@dataclass(frozen=True, slots=True)
class ProduceReport:
    """What was sent.

    Parameters
    ----------
    sent, acked
        Records handed to the producer, and acknowledged by the broker.
    resumed_from
        How many events of the input were skipped because an earlier run had sent them.
    seconds
        Wall time.
    """

    sent: int
    acked: int
    resumed_from: int
    seconds: float


def parse_speed(text: str) -> float:
    """Return how many times faster than real time: "realtime" 1, "max" infinity, or a number.

    Raises
    ------
    InvalidSetting
        When it is none of these.
    """
    named = {"max": float("inf"), "realtime": 1.0}
    if text in named:
        return named[text]
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not speed > 0:
        raise InvalidSetting(f"speed {text!r}", expected="realtime, max, or a number above 0 (times real time)")
    return speed


def partition_of(user_id: str, partitions: int) -> int:
    """Return the user's partition as Kafka's own clients choose it (murmur2 of the key)."""
    return int(murmur2(user_id.encode()) & 0x7FFFFFFF) % partitions


class Pace:
    """Waits until an event is due.

    Parameters
    ----------
    speed
        Times real time; infinity never waits.
    now, sleep
        A monotonic clock in seconds, and how to wait.
    """

    def __init__(
        self, speed: float, now: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._speed, self._now, self._sleep = speed, now, sleep
        self._origin: tuple[int, float] | None = None

    def delay(self, ts: int) -> float:
        """Return the seconds until an event of time `ts` (milliseconds) is due."""
        if self._speed == float("inf"):
            return 0.0
        if self._origin is None:
            self._origin = (ts, self._now())
        first, started = self._origin
        return started + (ts - first) / 1000 / self._speed - self._now()

    def wait(self, ts: int, stopping: Callable[[], bool]) -> None:
        """Wait, looking up twice a second whether to stop."""
        while (left := self.delay(ts)) > 0 and not stopping():
            self._sleep(min(left, 0.5))


def produce(
    events: Iterable[Interaction],
    *,
    servers: str,
    topic: str,
    partitions: int = 1,
    speed: float = float("inf"),
    start_at: int = 0,
    limit: int | None = None,
    stopping: Callable[[], bool] = lambda: False,
    progress: Progress = silent,
) -> ProduceReport:
    """Send the events to the topic, and return once each is acknowledged.

    Parameters
    ----------
    events
        In the order in which they are to be read.
    servers
        Bootstrap servers.
    topic
        Created if there is none.
    partitions
        Of a topic that is created; see the module for what more than one means.
    speed
        Times real time, by the events' own times; infinity does not wait.
    start_at
        Skip so many events first.
    limit
        Send at most so many.
    stopping
        Asked before each event; True ends the run in good order.
    progress
        Told how far it is.

    Raises
    ------
    BrokerUnavailable
        When no broker answers.
    StreamError
        When a record was not acknowledged, saying how many were.
    """
    if start_at < 0 or (limit is not None and limit < 0):
        raise InvalidSetting(f"start at {start_at}, limit {limit}", expected="0 or more")
    started = time.monotonic()
    info = ensure_topic(servers, topic, partitions)
    with broker_answers(servers):
        client = KafkaProducer(
            bootstrap_servers=servers,
            bootstrap_timeout_ms=ANSWER_WITHIN_MS,
            max_block_ms=ANSWER_WITHIN_MS,
            client_id="anabranch-producer",
            linger_ms=LINGER_MS,
            batch_size=BATCH_BYTES,
        )
    sender = _Sender(client, servers, topic, len(info.partitions))
    pace = Pace(speed)
    try:
        for number, event in enumerate(events):
            if stopping() or (limit is not None and sender.sent >= limit):
                break
            if number >= start_at:
                pace.wait(event.ts, stopping)
                sender.send(event)
                if sender.sent % _REPORT_EVERY == 0:
                    progress("sending", sender.sent, limit or 0)
        sender.finish()
    finally:
        client.close(timeout=5)
    progress("sending", sender.sent, sender.sent)
    return ProduceReport(sender.sent, sender.acked, start_at, time.monotonic() - started)


class _Sender:
    """Counts what was sent and what was acknowledged."""

    def __init__(self, client: KafkaProducer, servers: str, topic: str, partitions: int) -> None:
        self._client, self._servers, self._topic, self._partitions = client, servers, topic, partitions
        self._open: deque[FutureRecordMetadata] = deque()
        self._placed: dict[str, int] = {}  # hashing a key in Python costs as much as sending it
        self.sent = self.acked = 0

    def send(self, event: Interaction) -> None:
        place = self._placed.get(event.user_id)
        if place is None:
            place = self._placed[event.user_id] = partition_of(event.user_id, self._partitions)
        with broker_answers(self._servers):
            future = self._client.send(
                self._topic,
                value=encode_event(event),
                key=event.user_id.encode(),
                partition=place,
            )
        self.sent += 1
        self._open.append(future)
        if len(self._open) > _UNCHECKED:
            self._check(self._open.popleft(), ANSWER_WITHIN_MS * 3 / 1000)

    def finish(self) -> None:
        try:
            self._client.flush(timeout=120)
        except KafkaError as error:
            self._fail(error)
        while self._open:
            self._check(self._open.popleft(), 0)

    def _check(self, future: FutureRecordMetadata, wait_s: float) -> None:
        try:
            future.get(timeout=wait_s)
        except KafkaError as error:
            self._fail(error)
        self.acked += 1

    def _fail(self, error: KafkaError) -> None:
        acked = self.acked + sum(future.succeeded() for future in self._open)
        raise StreamError(
            f"{self.sent - acked} of {self.sent} records were not acknowledged: {error}",
            consequence=f"{acked} are on {self._topic}",
            mend="send again: a second copy of an event is skipped by its event_id",
        ) from error
