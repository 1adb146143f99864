"""Records that cannot be used go to `<topic>.dead`, with where they came from and why; nothing is dropped.

Letters wait here until the next checkpoint, whose first step sends them: a worker that is killed, or whose breaker
trips, has sent none of the records that it will read again. One that is killed between the first step and the second
sends them once more. The headers `source.topic`, `source.partition` and `source.offset` together name a record, so a
reader can tell a second copy; `stream.replay` does.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from common.errors import StreamError
from common.events import SCHEMA_VERSION
from stream.source import Delivery, Headers, Log, Sink
from stream.topics import dead_topic

ATTEMPTS = "attempts"
"""Header: how often the record was tried, this time included; a record without it is tried for the first time."""
FLUSH_WITHIN_S = 30.0
_REASON_LIMIT = 1000
"""Characters of the reason; a record's own text may be in it, and headers count towards the record's size."""


def attempts_of(headers: Headers) -> int:
    """Return which attempt at a record this is: 1 for one that nobody has sent again.

    A header that is no number, or far from one, counts as 1: it came from somebody else.
    """
    for name, value in headers:
        if name == ATTEMPTS and value.isdigit() and len(value) < 7:
            return max(1, int(value))
    return 1


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One record that could not be used.

    Parameters
    ----------
    topic, partition, offset
        Where it was read.
    key, value
        Its bytes, as they were.
    error
        The name of the error's class.
    reason
        One line.
    attempts
        Which attempt failed.
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    error: str
    reason: str
    attempts: int = 1

    def headers(self) -> list[tuple[str, bytes]]:
        """Return the headers of the record on the dead-letter topic."""
        texts: Mapping[str, str] = {
            "source.topic": self.topic,
            "source.partition": str(self.partition),
            "source.offset": str(self.offset),
            "error": self.error,
            "reason": self.reason[:_REASON_LIMIT],
            "schema.version": str(SCHEMA_VERSION),
            ATTEMPTS: str(self.attempts),
        }
        return [(name, text.encode("utf-8", "replace")) for name, text in texts.items()]


class DeadLetters:
    """Holds dead letters and sends them; the topic and the writer are made when the first ones are sent.

    Parameters
    ----------
    log
        Where they go.
    topic
        The topic whose records go dead.
    """

    def __init__(self, log: Log, topic: str) -> None:
        self._log = log
        self._topic = dead_topic(topic)
        self._sink: Sink | None = None
        self._waiting: list[DeadLetter] = []
        self.size = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, letter: DeadLetter) -> None:
        """Keep one letter until `flush`; `size` is the bytes that wait."""
        self._waiting.append(letter)
        self.size += len(letter.value or b"")

    def flush(self, timeout_s: float = FLUSH_WITHIN_S) -> None:
        """Send what waits, and wait until each is acknowledged.

        Raises
        ------
        StreamError
            When one is not: the caller must not store its offsets.
        """
        if not self._waiting:
            return
        try:
            if self._sink is None:
                self._log.ensure_topic(self._topic, 1)
                self._sink = self._log.sink("anabranch-dead-letters")
            sent = [self._send(self._sink, letter) for letter in self._waiting]
            self._sink.flush(timeout_s)
            for delivery in sent:
                delivery.offset(0)
        except StreamError as error:
            raise StreamError(
                f"dead letters did not arrive on {self._topic}: {error}",
                consequence="no offset was stored, so their records are read again",
                mend="look at the broker, then start again",
            ) from error
        self._waiting.clear()
        self.size = 0

    def _send(self, sink: Sink, letter: DeadLetter) -> Delivery:
        # a record without a value would be a deletion on a compacted topic
        value = b"" if letter.value is None else letter.value
        return sink.send(self._topic, value, partition=0, key=letter.key, headers=letter.headers())

    def close(self) -> None:
        """Close the connection; what was not flushed is read again after the next start."""
        if self._sink is not None:
            self._sink.close()
            self._sink = None
