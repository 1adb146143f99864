"""Kafka by librdkafka (`pip install "anabranch[fast]"`): the same protocols as `stream.kafka_log`, in C.

Topics, and transactions, which are few, stay with kafka-python.
"""

import re
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from common.errors import BrokerUnavailable, InvalidSetting, OffsetLost, StreamError
from stream import topics
from stream.kafka_log import FETCH_BYTES, POLL_RECORDS, KafkaLog
from stream.kafka_sink import BATCH_BYTES, LINGER_MS
from stream.source import NO_EPOCH, SESSION_S, Delivery, Headers, Owner, Record, Sink, Source, TopicInfo

_ANSWER_S = 10.0
_CUT = re.compile(r"truncat.* end offset is (\d+)")
"""What librdkafka says of a log that was cut; the place is told nowhere else."""


class FastRecord(NamedTuple):
    """One record as read; see `stream.source.Record`."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp: int
    leader_epoch: int


@dataclass(frozen=True, slots=True)
class FastLog(KafkaLog):
    """A Kafka cluster, read and written by librdkafka."""

    def source(self, topic: str, group: str) -> Source:
        """Return a reader of the topic."""
        return FastSource(self, topic, group)

    def member(
        self, topic: str, group: str, owner: Owner, *, name: str | None = None, session_s: float = SESSION_S
    ) -> Source:
        """Refuse: a cooperative hand-over with it is not built."""
        raise InvalidSetting(
            "a member of a group by the client librdkafka",
            expected="the client kafka-python for --scale-out",
            mend="leave out --client",
        )

    def sink(self, name: str) -> Sink:
        """Return a writer."""
        return FastSink(self, name)


class FastSource:
    """Reads partitions of one topic; see `stream.source.Source`.

    Parameters
    ----------
    log
        Where.
    topic
        Of which topic.
    group
        Whose committed offsets dashboards see.
    """

    def __init__(self, log: FastLog, topic: str, group: str) -> None:
        self._log, self._topic = log, topic
        self._at: dict[int, int] = {}
        self._epochs: dict[int, int] = {}
        self._consumer = Consumer(
            {
                "bootstrap.servers": log.servers,
                "client.id": "anabranch-worker",
                "group.id": group,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "error",
                "isolation.level": "read_committed",
                "fetch.message.max.bytes": FETCH_BYTES,
                "allow.auto.create.topics": False,
                "log_level": 0,
                **log.security.librdkafka_options(),
            }
        )

    def topic(self) -> TopicInfo | None:
        """Look the topic up now."""
        with topics.admin_client(self._log.servers, self._log.security, topics.LOOK_UP_MS) as client:
            return topics.describe(client, self._topic)

    def assign(self, positions: Mapping[int, int | None], epochs: Mapping[int, int] | None = None) -> None:
        """Read these partitions, each from its offset."""
        begins = self.bounds([part for part, offset in positions.items() if offset is None])
        self._at = {part: begins[part][0] if offset is None else offset for part, offset in positions.items()}
        self._epochs = dict(epochs or {})
        self._consumer.assign(
            [
                self._place(part, OFFSET_BEGINNING if positions[part] is None else offset)
                for part, offset in sorted(self._at.items())
            ]
        )

    def seek(self, partition: int, offset: int, epoch: int = NO_EPOCH) -> None:
        """Read the partition on from there."""
        self._at[partition], self._epochs[partition] = offset, epoch
        # seek waits for a fetcher that may not be there yet; a new assignment keeps the others where they are
        self._consumer.assign([self._place(part, at) for part, at in sorted(self._at.items())])

    def _place(self, partition: int, offset: int) -> TopicPartition:
        epoch = self._epochs.get(partition, NO_EPOCH)
        known = {} if epoch == NO_EPOCH else {"leader_epoch": epoch}
        return TopicPartition(self._topic, partition, offset, **known)

    def poll(self, timeout_s: float) -> Sequence[Record]:
        """Return what has come."""
        first = self._consumer.poll(timeout_s)
        if first is None:
            return []
        messages = [first, *self._consumer.consume(POLL_RECORDS, 0)]
        found: list[FastRecord] = []
        lost: dict[int, int] = {}
        cut: dict[int, int | None] = {}
        for message in messages:
            error = message.error()
            if error is None:
                found.append(self._record(message))
            elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001  # the library's own name for it
                part = int(message.partition())
                self._at[part] = max(self._at.get(part, 0), int(message.offset()))
            elif error.code() == KafkaError._AUTO_OFFSET_RESET:  # noqa: SLF001  # the library's own name for it
                part = int(message.partition())
                lost[part] = self._at[part]
                if told := _CUT.search(error.str()):
                    cut[part] = int(told[1])
            elif not error.retriable():
                raise BrokerUnavailable(f"reading {self._topic} at {self._log.servers} failed: {error.str()}")
        if lost:
            for part, at in self._at_of(found).items():  # what was read is given again after the loss is dealt with
                self._at[part] = at
            raise OffsetLost(f"{self._topic}: no such offset {lost}", positions=lost, cut=cut)
        return sorted(found, key=lambda record: (record.partition, record.offset))

    def _record(self, message: Message) -> FastRecord:
        partition, offset = int(message.partition()), int(message.offset())
        epoch = message.leader_epoch()
        epoch = NO_EPOCH if epoch is None else int(epoch)
        self._at[partition], self._epochs[partition] = offset + 1, epoch
        headers = tuple((name, value) for name, value in message.headers() or ())
        at = int(message.timestamp()[1])
        return FastRecord(self._topic, partition, offset, message.key(), message.value(), headers, at, epoch)

    def _at_of(self, records: Sequence[FastRecord]) -> dict[int, int]:
        return {record.partition: record.offset for record in reversed(records)}

    def bounds(self, partitions: Collection[int]) -> dict[int, tuple[int, int]]:
        """Return the oldest offset and the end of each partition."""
        return {part: self._bounds_of(part) for part in sorted(partitions)}

    def _bounds_of(self, partition: int) -> tuple[int, int]:
        """Ask until the leader is known: a new topic has none for a moment."""
        deadline = time.monotonic() + _ANSWER_S
        while True:
            try:
                low, high = self._consumer.get_watermark_offsets(TopicPartition(self._topic, partition), _ANSWER_S)
            except KafkaException as error:
                if time.monotonic() > deadline:
                    raise BrokerUnavailable(f"no Kafka broker answers at {self._log.servers} ({error})") from error
                time.sleep(0.1)
            else:
                return int(low), int(high)

    def stay(self) -> None:
        """Do nothing: it belongs to no group."""

    def ends(self) -> dict[int, int]:
        """Return the ends that the last polls told."""
        known = {
            part: self._consumer.get_watermark_offsets(TopicPartition(self._topic, part), cached=True)[1]
            for part in self._at
        }
        return {part: int(end) for part, end in sorted(known.items()) if end >= 0}

    def positions(self) -> dict[int, int]:
        """Return where each partition is read on."""
        return dict(self._at)

    def commit(self, offsets: Mapping[int, int], *, wait: bool = False) -> None:
        """Show the offsets to dashboards."""
        if offsets:
            shown = [TopicPartition(self._topic, part, offset) for part, offset in sorted(offsets.items())]
            with suppress(KafkaException):  # a commit that fails shows on dashboards only
                self._consumer.commit(offsets=shown, asynchronous=not wait)

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()


class FastDelivery:
    """What became of one send; see `stream.source.Delivery`."""

    __slots__ = ("_error", "_offset", "_producer", "settled")

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self.settled, self._offset, self._error = False, -1, ""

    def arrived(self, error: KafkaError | None, message: Message) -> None:
        """Take the broker's answer; librdkafka calls it from within `poll` and `flush`."""
        self.settled = True
        if error is None:
            self._offset = int(message.offset())
        else:
            self._error = str(error)

    def offset(self, timeout_s: float) -> int:
        """Return the record's offset."""
        deadline = time.monotonic() + timeout_s
        while not self.settled and time.monotonic() < deadline:
            self._producer.poll(0.05)
        if not self.settled or self._error:
            raise StreamError(f"a record was not acknowledged: {self._error or 'no answer in time'}")
        return self._offset


class FastSink:
    """Writes records, idempotently; see `stream.source.Sink`.

    Parameters
    ----------
    log
        Where.
    name
        What the broker's logs call it.
    """

    def __init__(self, log: FastLog, name: str) -> None:
        self._log = log
        self._producer = Producer(
            {
                "bootstrap.servers": log.servers,
                "client.id": name,
                "enable.idempotence": True,
                "linger.ms": LINGER_MS,
                "batch.size": BATCH_BYTES,
                "log_level": 0,
                **log.security.librdkafka_options(),
            }
        )

    def send(
        self, topic: str, value: bytes, *, partition: int, key: bytes | None = None, headers: Headers = ()
    ) -> Delivery:
        """Hand over one record."""
        delivery = FastDelivery(self._producer)
        deadline = time.monotonic() + _ANSWER_S
        while True:
            try:
                self._producer.produce(
                    topic, value, key, partition=partition, headers=list(headers), on_delivery=delivery.arrived
                )
            except BufferError as error:  # the queue is full
                if time.monotonic() > deadline:
                    raise BrokerUnavailable(f"no Kafka broker at {self._log.servers} takes records") from error
                self._producer.poll(0.1)
            else:
                self._producer.poll(0)
                return delivery

    def flush(self, timeout_s: float) -> None:
        """Wait until every send is settled."""
        if left := self._producer.flush(timeout_s):
            raise StreamError(f"{left} records were not acknowledged within {timeout_s:g} s")

    def close(self) -> None:
        """Send what waits, for a second at most."""
        self._producer.flush(1.0)
