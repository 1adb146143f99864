"""The two ends of a log, as the stream half needs them: a `Source` that is read, a `Sink` that is written.

A log has topics, a topic partitions, a partition records with rising offsets (with holes: a transaction's marker takes
one). Who reads keeps the offsets: a source is told where to read, never asks the broker where it was, and says so when
the next record is gone. Several readers share a topic by assigning themselves different partitions.

Implementations: `stream.kafka_log` (kafka-python, the default), and the in-memory log of the tests. One suite of laws
holds for all: `tests/contracts/test_logs.py`.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from heapq import merge
from typing import Protocol

Headers = Sequence[tuple[str, bytes]]
SESSION_S = 10.0
"""A member of a group that is not heard of for so long is taken for dead."""
NO_EPOCH = -1
"""The leader epoch of a record where the broker tells none."""


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """A topic as the broker has it now.

    Parameters
    ----------
    name
        What people call it.
    identity
        The broker's UUID for it, kept over restarts and new after delete and create; "" where the broker has none.
    partitions
        Their numbers, rising.
    """

    name: str
    identity: str
    partitions: tuple[int, ...]


class Record(Protocol):
    """One record as read; kafka-python's own records fit, so nothing is copied."""

    @property
    def topic(self) -> str:
        """Where it was read."""

    @property
    def partition(self) -> int:
        """Its partition."""

    @property
    def offset(self) -> int:
        """Its place in the partition."""

    @property
    def key(self) -> bytes | None:
        """Its key, as it was sent."""

    @property
    def value(self) -> bytes | None:
        """Its bytes; None deletes a key of a compacted topic."""

    @property
    def headers(self) -> Headers:
        """Names and bytes, in their order."""

    @property
    def timestamp(self) -> int:
        """Milliseconds since the epoch: when it was sent."""

    @property
    def leader_epoch(self) -> int:
        """Under which leader of the partition it was written, counted from 0; `NO_EPOCH` where nobody says."""


class Source(Protocol):
    """Reads partitions of one topic."""

    def topic(self) -> TopicInfo | None:
        """Look the topic up now; None when there is none.

        Raises
        ------
        BrokerUnavailable
            When no broker answers.
        """

    def assign(self, positions: Mapping[int, int | None], epochs: Mapping[int, int] | None = None) -> None:
        """Read these partitions and no others, each from its offset; None is its beginning.

        Parameters
        ----------
        positions
            Partition to offset.
        epochs
            Leader epoch of the last record before the offset, where it is known: by it shows a log that was cut below
            the offset and has grown again.
        """

    def seek(self, partition: int, offset: int, epoch: int = NO_EPOCH) -> None:
        """Read an assigned partition on from this offset; `epoch` as for `assign`."""

    def poll(self, timeout_s: float) -> Sequence[Record]:
        """Return what has come, partition by partition in order of offsets; empty after the timeout.

        Raises
        ------
        OffsetLost
            When the next record of a partition is not there: deleted, or the log ends before it, or was cut before it
            and written anew. Its `positions` say which; nothing is read of them until `seek`.
        BrokerUnavailable
            When reading failed otherwise.
        """

    def bounds(self, partitions: Collection[int]) -> dict[int, tuple[int, int]]:
        """Return the oldest offset and the one that the next record will get.

        Raises
        ------
        BrokerUnavailable
            When no broker answers.
        """

    def stay(self) -> None:
        """Say that a member of a group is at work, and read nothing; its owner may be told of what comes or goes.

        One that neither polls nor says so for two minutes is thrown out, however well it is.
        """

    def ends(self) -> dict[int, int]:
        """Return the end of each assigned partition, as far as the last polls told; asks nobody."""

    def positions(self) -> dict[int, int]:
        """Return where each assigned partition is read on; past a hole that the last poll came upon."""

    def commit(self, offsets: Mapping[int, int], *, wait: bool = False) -> None:
        """Show the offsets to the group's dashboards; a failure is nobody's concern."""

    def close(self) -> None:
        """Close the connections, in bounded time."""


class Owner(Protocol):
    """Told which partitions a member of a group reads; within `Source.poll`, `stay` and `close`, never else.

    These wait for it, and the member's heartbeats go on meanwhile. It may ask the member nothing.
    """

    def assigned(self, partitions: Collection[int]) -> None:
        """Own these from now on; nothing is read of one until `Source.seek` says from where."""

    def revoked(self, partitions: Collection[int]) -> None:
        """Give these up; others get them once this returns, so it is the last chance to store."""

    def lost(self, partitions: Collection[int]) -> None:
        """Others own these already: nothing of them may be stored."""


class Delivery(Protocol):
    """What became of one send."""

    @property
    def settled(self) -> bool:
        """Whether the broker has answered, or it was given up."""

    def offset(self, timeout_s: float) -> int:
        """Return the record's offset, waiting for the acknowledgement.

        Raises
        ------
        StreamError
            When it was not acknowledged in time, or at all.
        """


class Sink(Protocol):
    """Writes records, each acknowledged by all in-sync replicas, each at most once a send."""

    def send(
        self, topic: str, value: bytes, *, partition: int, key: bytes | None = None, headers: Headers = ()
    ) -> Delivery:
        """Hand over one record; records of one partition keep their order.

        Raises
        ------
        BrokerUnavailable
            When no broker took it in time.
        """

    def flush(self, timeout_s: float) -> None:
        """Wait until every send is settled.

        Raises
        ------
        StreamError
            When some are not after the timeout.
        """

    def close(self) -> None:
        """Close the connections, in bounded time."""


class TransactionalSink(Protocol):
    """Writes records that are all seen or none, over several topics; there is one of a name at a time.

    Making one ends what an older one of the same name had begun, and that one can write no more.
    """

    def transaction(self) -> AbstractContextManager[None]:
        """Send within the block; its end commits, an exception in it undoes.

        Raises
        ------
        StreamError
            When it could not be committed, or a newer one of the same name took over; nothing of it is seen then.
        """

    def send(
        self, topic: str, value: bytes, *, partition: int, key: bytes | None = None, headers: Headers = ()
    ) -> Delivery:
        """Hand over one record of the open transaction."""

    def close(self) -> None:
        """Close the connections, in bounded time."""


class Log(Protocol):
    """A broker, or what stands in for one."""

    @property
    def address(self) -> str:
        """What people call it, for messages."""

    def ensure_topic(self, topic: str, partitions: int = 1) -> TopicInfo:
        """Return the topic, created with that many partitions if there is none."""

    def await_topic(self, topic: str, wait_s: float) -> TopicInfo:
        """Return the topic, waiting for somebody to create it."""

    def source(self, topic: str, group: str) -> Source:
        """Return a reader; `group` names it on dashboards only."""

    def member(
        self, topic: str, group: str, owner: Owner, *, name: str | None = None, session_s: float = SESSION_S
    ) -> Source:
        """Return a reader that shares the topic's partitions with the group's other members; it is told which.

        Parameters
        ----------
        topic, group
            Of which topic, in which group.
        owner
            Told which.
        name
            One that closes leaves its partitions to the others, unless it has a name: then they wait for one of the
            same name until the session ends. None is no name.
        session_s
            One that is not heard of for so long is taken for dead.

        Raises
        ------
        InvalidSetting
            When this client cannot.
        """

    def sink(self, name: str) -> Sink:
        """Return a writer; `name` is what the broker's logs call it."""

    def transactional_sink(self, name: str) -> TransactionalSink:
        """Return a writer whose records are seen together or not at all."""


_QUIET_POLLS = 10
"""So many empty polls end the reading of a topic that does not come to the end that the broker told."""


def read_to_end(source: Source, partitions: Collection[int], start: Mapping[int, int]) -> Iterator[Record]:
    """Read partitions until they are quiet, each from its start (none: its beginning) or the oldest record it has."""
    bounds = source.bounds(partitions)
    source.assign({part: max(start.get(part, 0), begin) for part, (begin, _) in bounds.items()})
    quiet = 0
    while quiet < _QUIET_POLLS:
        records = source.poll(0.2)
        yield from records
        quiet = 0 if records else quiet + 1
        at = source.positions()
        if quiet and all(at[part] >= end for part, (_, end) in bounds.items()):
            return


def in_time(records: Sequence[Record]) -> Iterator[Record]:
    """Return what a poll gave: the records of each partition in their order, those of different ones as they were sent.

    Polls give one partition after the other; where all are behind, one would be caught up while the others wait.
    """
    parts: dict[int, list[Record]] = {}
    for record in records:
        parts.setdefault(record.partition, []).append(record)
    return merge(*parts.values(), key=lambda record: record.timestamp)
