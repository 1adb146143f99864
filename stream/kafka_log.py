"""Kafka behind `stream.source`'s protocols, by kafka-python: the default way to any broker."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kafka import AsyncConsumerRebalanceListener, KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import KafkaError, LogTruncationError, OffsetOutOfRangeError
from kafka.future import Future
from kafka.partitioner.default import murmur2
from kafka.structs import MemberState

from common.errors import BrokerUnavailable, InvalidSetting, OffsetLost, StreamError
from stream import topics
from stream.kafka_sink import RECONNECT_MS, KafkaSink, KafkaTransactionalSink
from stream.security import PLAIN, Security
from stream.source import (
    NO_EPOCH,
    SESSION_S,
    Owner,
    Record,
    Sink,
    Source,
    TopicInfo,
    TransactionalSink,
)
from stream.topics import admin_client, broker_answers, check_bootstrap, describe

POLL_RECORDS = 5000
FETCH_BYTES = 4 * 1024 * 1024
_SMALL_POLLS = {"max_poll_records": 1000, "max_partition_fetch_bytes": 256 * 1024}
"""Of a member of a group: its partitions must get on together, or one is caught up while the others wait."""
HEARTBEAT_MS = 1_000
POLL_WITHIN_MS = 120_000
"""Of a member of a group: one that polls more seldom leaves it; a rebalance waits so long for one that is at work."""
_LOGS_BYTES = ("kafka.net.connection", "kafka.net.transport", "kafka.protocol.parser", "kafka.net.sasl")
"""Loggers of kafka-python that write requests, a password's among them, at level DEBUG."""


def _no_bytes(record: logging.LogRecord) -> bool:
    return record.levelno > logging.DEBUG


def partition_of(key: str, partitions: int) -> int:
    """Return the key's partition as Kafka's own clients choose it (murmur2)."""
    return int(murmur2(key.encode()) & 0x7FFFFFFF) % partitions


@dataclass(frozen=True, slots=True)
class KafkaLog:
    """A Kafka cluster.

    Parameters
    ----------
    servers
        Bootstrap servers, HOST:PORT apart by commas.
    security
        What it asks for.
    """

    servers: str
    security: Security = PLAIN

    def __post_init__(self) -> None:
        check_bootstrap(self.servers)
        if self.security.password is not None:
            for name in _LOGS_BYTES:  # a filter that is there already is not added again
                logging.getLogger(name).addFilter(_no_bytes)

    @property
    def address(self) -> str:
        """The bootstrap servers."""
        return self.servers

    def ensure_topic(self, topic: str, partitions: int = 1) -> TopicInfo:
        """Return the topic, created if there is none; see `stream.topics.ensure_topic`."""
        return topics.ensure_topic(self.servers, topic, partitions, self.security)

    def await_topic(self, topic: str, wait_s: float) -> TopicInfo:
        """Return the topic, waiting for it; see `stream.topics.await_topic`."""
        return topics.await_topic(self.servers, topic, wait_s, self.security)

    def source(self, topic: str, group: str) -> Source:
        """Return a reader of the topic."""
        return KafkaSource(self, topic, group)

    def member(
        self, topic: str, group: str, owner: Owner, *, name: str | None = None, session_s: float = SESSION_S
    ) -> Source:
        """Return a reader that shares the topic with the group's other members."""
        return KafkaMember(self, topic, group, owner, name, session_s)

    def sink(self, name: str) -> Sink:
        """Return a writer."""
        return KafkaSink(self.servers, self.security, name)

    def transactional_sink(self, name: str) -> TransactionalSink:
        """Return a writer whose records are seen together or not at all."""
        return KafkaTransactionalSink(self.servers, self.security, name)


class KafkaSource:
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

    def __init__(self, log: KafkaLog, topic: str, group: str, **more: Any) -> None:
        self._log, self._topic = log, topic
        fetching = {"max_poll_records": POLL_RECORDS, "max_partition_fetch_bytes": FETCH_BYTES}
        with broker_answers(log.servers):
            self._consumer = KafkaConsumer(
                bootstrap_servers=log.servers,
                bootstrap_timeout_ms=topics.ANSWER_WITHIN_MS,
                client_id="anabranch-worker",
                group_id=group,
                enable_auto_commit=False,
                auto_offset_reset="none",
                allow_auto_create_topics=False,
                isolation_level="read_committed",
                metadata_max_age_ms=30_000,
                reconnect_backoff_max_ms=RECONNECT_MS,
                **log.security.kafka_options(),
                **{**fetching, **more},
            )

    def topic(self) -> TopicInfo | None:
        """Look the topic up now, over a connection of its own: the broker may be another by now."""
        with admin_client(self._log.servers, self._log.security, topics.LOOK_UP_MS) as client:
            return describe(client, self._topic)

    def assign(self, positions: Mapping[int, int | None], epochs: Mapping[int, int] | None = None) -> None:
        """Read these partitions, each from its offset."""
        self._consumer.assign([self._part(number) for number in sorted(positions)])
        for number, offset in sorted(positions.items()):
            if offset is None:
                self._consumer.seek_to_beginning(self._part(number))
            else:
                self._seek(number, offset, (epochs or {}).get(number, NO_EPOCH))

    def seek(self, partition: int, offset: int, epoch: int = NO_EPOCH) -> None:
        """Read the partition on from there."""
        self._seek(partition, offset, epoch)

    def _seek(self, partition: int, offset: int, epoch: int) -> None:
        self._consumer.seek(self._part(partition), offset)
        if epoch != NO_EPOCH:
            # the public seek takes no epoch; with one, kafka-python asks the leader whether it still has that record
            self._state(self._part(partition)).seek(OffsetAndMetadata(offset, "", epoch))

    def _state(self, part: TopicPartition) -> Any:
        """Return what kafka-python knows of an assigned partition."""
        return self._consumer._subscription.assignment[part]  # noqa: SLF001  # positions with epochs are not public

    def poll(self, timeout_s: float) -> Sequence[Record]:
        """Return what has come."""
        try:
            polled = self._consumer.poll(timeout_ms=int(timeout_s * 1000))
        except OffsetOutOfRangeError as error:
            positions = {part.partition: int(offset) for part, offset in error.args[0].items()}
            raise OffsetLost(f"{self._topic}: no such offset {positions}", positions=positions) from error
        except LogTruncationError as error:
            cut = {part.partition: at and int(at.offset) for part, at in error.divergent_offsets.items()}
            positions = {number: int(self._state(self._part(number)).position.offset) for number in cut}
            raise OffsetLost(f"{self._topic}: cut below {positions}", positions=positions, cut=cut) from error
        except KafkaError as error:
            raise BrokerUnavailable(f"reading {self._topic} at {self._log.servers} failed: {error}") from error
        return [record for part in sorted(polled) for record in polled[part]]

    def bounds(self, partitions: Collection[int]) -> dict[int, tuple[int, int]]:
        """Return the oldest offset and the end of each partition."""
        parts = [self._part(number) for number in sorted(partitions)]
        with broker_answers(self._log.servers):
            begin, end = self._consumer.beginning_offsets(parts), self._consumer.end_offsets(parts)
        return {part.partition: (int(begin[part]), int(end[part])) for part in parts}

    def stay(self) -> None:
        """Do nothing: it belongs to no group."""

    def ends(self) -> dict[int, int]:
        """Return the ends that the last polls told."""
        known = {part.partition: self._consumer.highwater(part) for part in self._consumer.assignment()}
        return {number: int(end) for number, end in sorted(known.items()) if end is not None}

    def positions(self) -> dict[int, int]:
        """Return where each partition is read on."""
        with broker_answers(self._log.servers):
            return {part.partition: int(self._consumer.position(part)) for part in self._consumer.assignment()}

    def commit(self, offsets: Mapping[int, int], *, wait: bool = False) -> None:
        """Show the offsets to dashboards."""
        if not offsets:
            return
        shown = {self._part(number): OffsetAndMetadata(offset, "", -1) for number, offset in offsets.items()}
        # a commit that fails shows on dashboards only
        if wait:
            with suppress(KafkaError):
                self._consumer.commit(shown, timeout_ms=1000)
        else:
            self._consumer.commit_async(shown, callback=lambda *_: None)

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close(timeout_ms=1000)

    def _part(self, number: int) -> TopicPartition:
        return TopicPartition(self._topic, number)


class KafkaMember(KafkaSource):
    """Reads what its group leaves to it: cooperative-sticky, so that what stays is read on while others move.

    Heartbeats of a second make a rebalance a matter of tenths; kafka-python's own three make it seconds.

    Parameters
    ----------
    log, topic, group
        As for `KafkaSource`.
    owner
        Told what it owns.
    name, session_s
        As for `stream.source.Log.member`; the name is Kafka's group.instance.id.
    """

    def __init__(self, log: KafkaLog, topic: str, group: str, owner: Owner, name: str | None, session_s: float) -> None:
        session_ms = int(session_s * 1000)
        super().__init__(
            log,
            topic,
            group,
            partition_assignment_strategy=[CooperativeStickyAssignor],
            heartbeat_interval_ms=HEARTBEAT_MS,
            session_timeout_ms=session_ms,
            max_poll_interval_ms=max(POLL_WITHIN_MS, session_ms),
            group_instance_id=name,
            **_SMALL_POLLS,
        )
        self._owner, self._name = owner, name
        self._join()

    def _join(self) -> None:
        self._consumer.subscribe([self._topic], listener=_Told(self._consumer, self._owner))
        # a leader that knows no partitions yet assigns none, and then must join a second time (see `poll`)
        with broker_answers(self._log.servers):
            self._consumer.partitions_for_topic(self._topic)
        self._stable_at = time.monotonic()

    def assign(self, positions: Mapping[int, int | None], epochs: Mapping[int, int] | None = None) -> None:
        """Refuse: the group assigns."""
        raise InvalidSetting(f"partitions {sorted(positions)} assigned by hand to a member of a group")

    def poll(self, timeout_s: float) -> Sequence[Record]:
        """Return what has come; a member that has been joining for longer than a group may take joins anew.

        kafka-python 3.0.12 forgets a join, for ever, whose reason is gone before it is done: no heartbeat is sent then,
        others own the partitions, and polls return nothing.
        """
        now = time.monotonic()
        if self._name is not None and self._replaced():
            raise StreamError(
                f"another worker has joined the group as {self._name!r}",
                expected="a name for each",
                consequence="this one stops; what it had not stored is read again by that one",
                mend="give each worker a --member of its own",
            )
        if self._consumer.group_metadata().state is MemberState.STABLE:
            self._stable_at = now
        elif now - self._stable_at > 1.1 * POLL_WITHIN_MS / 1000:
            held = _numbers(self._consumer.assignment())
            self._consumer.unsubscribe()
            if held:
                self._owner.lost(held)
            self._join()
        return super().poll(timeout_s)

    def _replaced(self) -> bool:
        """Tell whether another member has taken the name: kafka-python 3.0.12 stops the heartbeats without a word."""
        inside: Any = self._consumer._coordinator  # noqa: SLF001  # nothing public says it
        with inside._lock:  # noqa: SLF001  # as above: a join sets these together
            joined = inside.state is MemberState.STABLE and not inside.rejoining and not inside.rejoin_needed
            return joined and not inside._heartbeat_enabled  # noqa: SLF001  # as above

    def stay(self) -> None:
        """Poll with everything paused; what is fetched already is kept."""
        reading = self._consumer.assignment() - self._consumer.paused()
        self._consumer.pause(*reading)
        try:
            with suppress(OffsetLost, BrokerUnavailable):  # the next poll comes upon it again
                self.poll(0.0)
        finally:
            self._consumer.resume(*(reading & self._consumer.assignment()))

    def seek(self, partition: int, offset: int, epoch: int = NO_EPOCH) -> None:
        """Read the partition on from there, or begin with it."""
        super().seek(partition, offset, epoch)
        self._consumer.resume(self._part(partition))


class _Told(AsyncConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    """Tells an owner what kafka-python tells us, in a thread beside the one that sends the heartbeats."""

    def __init__(self, consumer: KafkaConsumer, owner: Owner) -> None:
        self._consumer, self._owner = consumer, owner

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        for part in assigned:
            # a position of some kind, or the group's committed offset would be taken, which is for dashboards; it
            # waits until somebody says from where it is read
            self._consumer.seek(part, 0)
            self._consumer.pause(part)
        self._owner.assigned(_numbers(assigned))

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        await self._beside(self._owner.revoked, _numbers(revoked))  # a slow disk may make it take long

    async def on_partitions_lost(self, lost: Collection[TopicPartition]) -> None:
        await self._beside(self._owner.lost, _numbers(lost))

    async def _beside(self, tell: Callable[[Collection[int]], None], partitions: Collection[int]) -> None:
        told, loop = Future(), self._consumer._net  # noqa: SLF001  # a future may be settled on its own thread only

        def work() -> None:
            failed: BaseException | None = None
            try:
                tell(partitions)
            except BaseException as error:  # raised where it is waited for
                failed = error

            async def settle() -> None:
                told.success(None) if failed is None else told.failure(failed)

            loop.call_soon_threadsafe(settle)

        threading.Thread(target=work, daemon=True).start()
        await told


def _numbers(parts: Collection[TopicPartition]) -> list[int]:
    return sorted(int(part.partition) for part in parts)
