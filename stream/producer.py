"""Events in, records out: idempotent, keyed by user, each one acknowledged.

Records of one user keep their order. Across users it is kept only on a topic with one partition: the learned state
depends on the order in which all events are read, so a run that must come out bit for bit the same uses one.

The event's time is inside the record; the record's own timestamp is when it was sent. Kafka's retention goes by the
latter, and would delete clicks of years ago within minutes.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from common.errors import InvalidSetting, StreamError
from common.events import Interaction, encode_event
from common.progress import Progress, silent
from stream.journal import Digest, Journal, Sent
from stream.kafka_log import partition_of
from stream.source import Delivery, Log

_REPORT_EVERY = 1000
_NOTE_EVERY_S = 1.0
_ACKNOWLEDGED_WITHIN_S = 120.0
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
    log: Log,
    topic: str,
    partitions: int = 1,
    speed: float = float("inf"),
    start_at: int = 0,
    limit: int | None = None,
    journal: Path | None = None,
    stopping: Callable[[], bool] = lambda: False,
    progress: Progress = silent,
) -> ProduceReport:
    """Send the events to the topic, and return once each is acknowledged.

    Parameters
    ----------
    events
        In the order in which they are to be read.
    log
        Where the topic is.
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
    journal
        A file that says how far the input was sent; a run that finds it goes on from there. See `stream.journal`.
    stopping
        Asked before each event; True ends the run in good order.
    progress
        Told how far it is.

    Raises
    ------
    BrokerUnavailable
        When no broker answers.
    StreamError
        When a record was not acknowledged, saying how many were; when the journal is of another input.
    InvalidSetting
        When a number cannot be, or the journal is of another topic.
    """
    if start_at < 0 or (limit is not None and limit < 0):
        raise InvalidSetting(f"start at {start_at}, limit {limit}", expected="0 or more")
    if journal is not None and start_at:
        raise InvalidSetting(f"start at {start_at} with a journal", expected="one of them: the journal says where")
    started = time.monotonic()
    info = log.ensure_topic(topic, partitions)
    book = None if journal is None else Journal(journal, info)
    sent = book.read() if book else None
    there = book.later_ids(log, sent) if book and sent else Counter[str]()
    if book and sent is None:
        sent = book.begin(log)
    skip = sent.acked if sent else start_at
    sender = _Sender(log, topic, len(info.partitions), book, sent)
    pace = Pace(speed)
    try:
        for number, event in enumerate(events, start=1):
            if stopping() or (limit is not None and sender.sent >= limit):
                break
            if number <= skip:
                sender.skip(event)
            elif there[event.event_id] > 0:
                there[event.event_id] -= 1
                sender.found(event)
            else:
                pace.wait(event.ts, stopping)
                sender.send(event)
                if sender.sent % _REPORT_EVERY == 0:
                    progress("sending", sender.sent, limit or 0)
        else:
            sender.expect_all_skipped()
        sender.finish()
    finally:
        sender.close()
    progress("sending", sender.sent, sender.sent)
    resumed = skip + sender.there if book else start_at
    return ProduceReport(sender.sent, sender.acked, resumed, time.monotonic() - started)


class _Sender:
    """Counts what was sent and what was acknowledged, and keeps the journal.

    Parameters
    ----------
    log, topic, partitions
        Where.
    book, before
        The journal, and what it said; None keeps none.
    """

    def __init__(self, log: Log, topic: str, partitions: int, book: Journal | None, before: Sent | None) -> None:
        self._log, self._topic, self._partitions = log, topic, partitions
        self._book, self._before = book, before or Sent()
        self._sink = log.sink("anabranch-producer")
        self._open: deque[tuple[str, int, Delivery | None]] = deque()
        self._placed: dict[str, int] = {}  # hashing a key in Python costs as much as sending it
        self._digest, self._settled, self._offsets = Digest(), 0, dict(self._before.offsets)
        self._noted_at = time.monotonic()
        self.sent = self.acked = self.there = 0

    def skip(self, event: Interaction) -> None:
        """Pass over an event that an earlier run sent."""
        if self._book is None:
            return
        self._digest.add(event.event_id)
        self._settled += 1
        if self._settled == self._before.acked:
            self._compare()

    def _compare(self) -> None:
        if self._settled != self._before.acked or self._digest.hex() != self._before.digest:
            raise StreamError(
                f"the first {self._before.acked} events of the input are not those that the journal says were sent",
                consequence="nothing was sent",
                mend="give the same input as before, or delete the journal to send all of it",
            )

    def found(self, event: Interaction) -> None:
        """Pass over an event that is on the topic already, though the journal does not say so."""
        self._open.append((event.event_id, -1, None))
        self.there += 1

    def send(self, event: Interaction) -> None:
        """Hand over one event."""
        place = self._placed.get(event.user_id)
        if place is None:
            place = self._placed[event.user_id] = partition_of(event.user_id, self._partitions)
        delivery = self._sink.send(self._topic, encode_event(event), partition=place, key=event.user_id.encode())
        self.sent += 1
        self._open.append((event.event_id, place, delivery))
        if len(self._open) > _UNCHECKED:
            self._settle(self._open.popleft(), _ACKNOWLEDGED_WITHIN_S)
        if self._book is not None and time.monotonic() - self._noted_at >= _NOTE_EVERY_S:
            self._note()

    def expect_all_skipped(self) -> None:
        """Check, at the input's end, that it was not shorter than what the journal says was sent."""
        if self._book is not None and self._settled < self._before.acked:
            self._compare()

    def finish(self) -> None:
        """Wait until all is acknowledged."""
        try:
            self._sink.flush(_ACKNOWLEDGED_WITHIN_S)
        except StreamError as error:
            self._fail(error)
        while self._open:
            self._settle(self._open.popleft(), 0)
        self._note()

    def close(self) -> None:
        self._sink.close()

    def _settle(self, entry: tuple[str, int, Delivery | None], wait_s: float) -> None:
        event_id, place, delivery = entry
        if delivery is not None:
            try:
                self._offsets[place] = delivery.offset(wait_s) + 1
            except StreamError as error:
                self._fail(error)
            self.acked += 1
        if self._book is not None:
            self._digest.add(event_id)
            self._settled += 1

    def _note(self) -> None:
        """Write down how far it is."""
        if self._book is None:
            return
        while self._open and (self._open[0][2] is None or self._open[0][2].settled):
            self._settle(self._open.popleft(), 0)
        self._noted_at = time.monotonic()
        if self._settled >= self._before.acked:
            self._book.write(Sent(self._settled, self._digest.hex(), self._offsets))

    def _fail(self, error: StreamError) -> None:
        acked = self.acked + sum(_arrived(delivery) for _, _, delivery in self._open)
        raise StreamError(
            f"{self.sent - acked} of {self.sent} records were not acknowledged: {error}",
            consequence=f"{acked} are on {self._topic}",
            mend="send again: a second copy of an event is skipped by its event_id",
        ) from error


def _arrived(delivery: Delivery | None) -> bool:
    try:
        return delivery is not None and delivery.settled and delivery.offset(0) >= 0
    except StreamError:
        return False
