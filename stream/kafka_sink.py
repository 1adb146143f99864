"""Writing to Kafka by kafka-python, record by record or in transactions; `stream.kafka_log` reads."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaError
from kafka.producer.future import FutureRecordMetadata

from common.errors import StreamError
from stream import topics
from stream.security import Security
from stream.source import Delivery, Headers
from stream.topics import broker_answers

LINGER_MS = 20
BATCH_BYTES = 256 * 1024
TRANSACTION_MS = 10_000
"""A transaction whose writer died is undone after this; until then readers wait before it."""
RECONNECT_MS = 1000
"""A broker that comes back is found within this; kafka-python alone waits up to half a minute."""


class KafkaDelivery:
    """What became of one send; see `stream.source.Delivery`."""

    __slots__ = ("_future",)

    def __init__(self, future: FutureRecordMetadata) -> None:
        self._future = future

    @property
    def settled(self) -> bool:
        """Whether the broker has answered."""
        return bool(self._future.is_done)

    def offset(self, timeout_s: float) -> int:
        """Return the record's offset."""
        try:
            return int(self._future.get(timeout=timeout_s).offset)
        except KafkaError as error:
            raise StreamError(f"a record was not acknowledged: {error}") from error


class KafkaSink:
    """Writes records, idempotently; see `stream.source.Sink`.

    Parameters
    ----------
    servers, security
        As `stream.kafka_log.KafkaLog` has them.
    name
        What the broker's logs call it.
    """

    def __init__(self, servers: str, security: Security, name: str, **more: Any) -> None:
        self._servers, self._name = servers, name
        with broker_answers(servers):
            self._producer = KafkaProducer(
                bootstrap_servers=servers,
                bootstrap_timeout_ms=topics.ANSWER_WITHIN_MS,
                max_block_ms=topics.ANSWER_WITHIN_MS,
                client_id=name,
                linger_ms=LINGER_MS,
                batch_size=BATCH_BYTES,
                reconnect_backoff_max_ms=RECONNECT_MS,
                **security.kafka_options(),
                **more,
            )

    def send(
        self, topic: str, value: bytes, *, partition: int, key: bytes | None = None, headers: Headers = ()
    ) -> Delivery:
        """Hand over one record."""
        with broker_answers(self._servers):
            return KafkaDelivery(
                self._producer.send(topic, value=value, key=key, headers=list(headers), partition=partition)
            )

    def flush(self, timeout_s: float) -> None:
        """Wait until every send is settled."""
        try:
            self._producer.flush(timeout=timeout_s)
        except KafkaError as error:
            raise StreamError(f"records were not acknowledged within {timeout_s:g} s: {error}") from error

    def close(self) -> None:
        """Close the connection; what is not acknowledged by now may be lost."""
        self._producer.close(timeout=1)


class KafkaTransactionalSink(KafkaSink):
    """Writes transactions; see `stream.source.TransactionalSink`."""

    def __init__(self, servers: str, security: Security, name: str) -> None:
        super().__init__(servers, security, name, transactional_id=name, transaction_timeout_ms=TRANSACTION_MS)
        with broker_answers(servers):
            self._producer.init_transactions()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Send within the block."""
        try:
            self._producer.begin_transaction()
            yield
            self._producer.commit_transaction()
        except KafkaError as error:
            self._undo()
            raise StreamError(
                f"a transaction of {self._name} at {self._servers} failed: {error!r}",
                consequence="nothing of it is seen",
                mend="start again; if another of the same name runs, let it end first",
            ) from error
        except BaseException:
            self._undo()
            raise

    def _undo(self) -> None:
        with suppress(KafkaError):  # the broker undoes it by itself after its timeout
            self._producer.abort_transaction()
