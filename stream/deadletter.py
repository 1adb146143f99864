"""Records that cannot be used go to `<topic>.dead`, with where they came from and why; nothing is dropped.

Delivery is at least once: a worker that was killed sends again what it sent since its last checkpoint. The headers
`source.topic`, `source.partition` and `source.offset` together name a record, so a reader can tell a second copy.
"""

from dataclasses import dataclass

from kafka import KafkaProducer
from kafka.errors import KafkaError
from kafka.producer.future import FutureRecordMetadata

from common.errors import StreamError
from stream.topics import ANSWER_WITHIN_MS, broker_answers, dead_topic, ensure_topic

_FLUSH_WITHIN_S = 30.0
_REASON_LIMIT = 1000
"""Characters of the reason; a record's own text may be in it, and headers count towards the record's size."""


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
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    error: str
    reason: str

    def headers(self) -> list[tuple[str, bytes]]:
        """Return the headers of the record on the dead-letter topic."""
        texts = {
            "source.topic": self.topic,
            "source.partition": str(self.partition),
            "source.offset": str(self.offset),
            "error": self.error,
            "reason": self.reason[:_REASON_LIMIT],
        }
        return [(name, text.encode("utf-8", "replace")) for name, text in texts.items()]


class DeadLetters:
    """Sends dead letters; the topic and the producer are made when the first one comes.

    Parameters
    ----------
    servers
        Bootstrap servers.
    topic
        The topic whose records go dead.
    """

    def __init__(self, servers: str, topic: str) -> None:
        self._servers = servers
        self._topic = dead_topic(topic)
        self._producer: KafkaProducer | None = None
        self._pending: list[FutureRecordMetadata] = []

    def send(self, letter: DeadLetter) -> None:
        """Hand one letter to the producer; `flush` makes sure that it arrived."""
        if self._producer is None:
            self._producer = self._connect()
        # a record without a value would be a deletion on a compacted topic
        value = b"" if letter.value is None else letter.value
        with broker_answers(self._servers):
            self._pending.append(
                self._producer.send(self._topic, value=value, key=letter.key, headers=letter.headers(), partition=0)
            )

    def _connect(self) -> KafkaProducer:
        ensure_topic(self._servers, self._topic, 1)
        with broker_answers(self._servers):
            return KafkaProducer(
                bootstrap_servers=self._servers,
                bootstrap_timeout_ms=ANSWER_WITHIN_MS,
                max_block_ms=ANSWER_WITHIN_MS,
                client_id="anabranch-dead-letters",
                linger_ms=20,
            )

    def flush(self) -> None:
        """Wait until every letter is acknowledged.

        Raises
        ------
        StreamError
            When one is not: the caller must not store its offsets.
        """
        if self._producer is None or not self._pending:
            return
        try:
            self._producer.flush(timeout=_FLUSH_WITHIN_S)
            for future in self._pending:
                future.get(timeout=0)
        except KafkaError as error:
            raise StreamError(
                f"dead letters did not arrive on {self._topic}: {error}",
                consequence="no offset was stored, so their records are read again",
                mend="look at the broker, then start again",
            ) from error
        self._pending.clear()

    def close(self) -> None:
        """Close the connection; what was not flushed is read again after the next start."""
        if self._producer is not None:
            self._producer.close(timeout=1)
            self._producer = None
