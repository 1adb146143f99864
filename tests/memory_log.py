"""A log in memory with the semantics of Kafka's: offsets, partitions, deletion, truncation, topics made again.

It stands in for a broker where a test wants thousands of small logs, or faults that no broker offers at will. The laws
of `tests/contracts/test_logs.py` hold for it as for the brokers.
"""

import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from common.errors import BrokerUnavailable, InvalidSetting, OffsetLost, StreamError, UnknownName
from stream.source import NO_EPOCH, SESSION_S, Delivery, Headers, Owner, Record, Sink, Source, TopicInfo


class MemoryRecord(NamedTuple):
    """One record."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp: int
    leader_epoch: int = NO_EPOCH


@dataclass
class _Partition:
    begin: int = 0
    records: dict[int, MemoryRecord] = field(default_factory=dict)
    end: int = 0
    starts: dict[int, int] = field(default_factory=lambda: {0: 0})  # leader epoch to its first offset

    @property
    def epoch(self) -> int:
        return max(self.starts)

    def cut_at(self, epoch: int) -> int:
        """Return where the log ends for one who read a record of that epoch last."""
        return min([start for later, start in self.starts.items() if later > epoch], default=self.end)


@dataclass
class _Topic:
    identity: str
    partitions: list[_Partition]


class MemoryLog:
    """All topics of one pretended broker.

    Parameters
    ----------
    batch
        Most records of one partition that a poll returns.
    epochs
        Whether records tell the leader's epoch.
    """

    address = "memory"

    def __init__(self, batch: int = 7, *, epochs: bool = True) -> None:
        self.topics: dict[str, _Topic] = {}
        self.batch, self.epochs = batch, epochs
        self.reachable = True
        self.committed: dict[str, dict[int, int]] = {}
        self.writers: dict[str, int] = {}
        self.groups: dict[tuple[str, str], list[MemoryMember]] = {}

    # --- Log --------------------------------------------------------------------------------------------------------

    def ensure_topic(self, topic: str, partitions: int = 1) -> TopicInfo:
        self.check()
        if partitions < 1:
            raise InvalidSetting(f"{partitions} partitions")
        self.topics.setdefault(topic, _Topic(str(uuid.uuid4()), [_Partition() for _ in range(partitions)]))
        return self.info(topic)

    def await_topic(self, topic: str, wait_s: float) -> TopicInfo:
        self.check()
        if topic not in self.topics:
            raise UnknownName("topic", topic, list(self.topics))
        return self.info(topic)

    def source(self, topic: str, group: str) -> Source:
        return MemorySource(self, topic, group)

    def member(
        self, topic: str, group: str, owner: Owner, *, name: str | None = None, session_s: float = SESSION_S
    ) -> "MemoryMember":
        self.check()
        return MemoryMember(self, topic, group, owner, name)

    def sink(self, name: str) -> Sink:
        return MemorySink(self)

    def transactional_sink(self, name: str) -> "MemoryTransactions":
        self.writers[name] = self.writers.get(name, 0) + 1
        return MemoryTransactions(self, name, self.writers[name])

    # --- what only a test does --------------------------------------------------------------------------------------

    def check(self) -> None:
        if not self.reachable:
            raise BrokerUnavailable("the memory log is out of reach")

    def info(self, topic: str) -> TopicInfo:
        found = self.topics[topic]
        return TopicInfo(topic, found.identity, tuple(range(len(found.partitions))))

    def delete_topic(self, topic: str) -> None:
        del self.topics[topic]

    def add_partitions(self, topic: str, total: int) -> None:
        parts = self.topics[topic].partitions
        parts += [_Partition() for _ in range(total - len(parts))]

    def delete_records(self, topic: str, partition: int, before: int) -> None:
        part = self.topics[topic].partitions[partition]
        part.begin = before
        part.records = {offset: record for offset, record in part.records.items() if offset >= before}

    def truncate(self, topic: str, partition: int, end: int) -> None:
        part = self.topics[topic].partitions[partition]
        part.end = end
        part.records = {offset: record for offset, record in part.records.items() if offset < end}
        starts = {epoch: start for epoch, start in part.starts.items() if start < end}
        part.starts = {**starts, part.epoch + 1: end}  # who leads now had not seen what is gone

    def leave_hole(self, topic: str, partition: int) -> None:
        """Use up one offset without a record, as a transaction's end does."""
        self.topics[topic].partitions[partition].end += 1

    def read(self, topic: str) -> list[MemoryRecord]:
        """Return all records of a topic, partition by partition."""
        return [record for part in self.topics[topic].partitions for record in part.records.values()]


class MemorySource:
    """Reads; see `stream.source.Source`."""

    def __init__(self, log: MemoryLog, topic: str, group: str) -> None:
        self._log, self._topic, self._group = log, topic, group
        self._at: dict[int, int] = {}
        self._epochs: dict[int, int] = {}

    def topic(self) -> TopicInfo | None:
        self._log.check()
        return self._log.info(self._topic) if self._topic in self._log.topics else None

    def assign(self, positions: Mapping[int, int | None], epochs: Mapping[int, int] | None = None) -> None:
        begins = {number: part.begin for number, part in enumerate(self._log.topics[self._topic].partitions)}
        self._at = {part: begins[part] if offset is None else offset for part, offset in positions.items()}
        self._epochs = dict(epochs or {})

    def seek(self, partition: int, offset: int, epoch: int = NO_EPOCH) -> None:
        self._at[partition], self._epochs[partition] = offset, epoch

    def poll(self, timeout_s: float) -> Sequence[Record]:
        if not self._log.reachable or self._topic not in self._log.topics:
            time.sleep(min(timeout_s, 0.01))
            return []
        parts = self._log.topics[self._topic].partitions
        found: list[MemoryRecord] = []
        lost: dict[int, int] = {}
        cut: dict[int, int | None] = {}
        for number, at in sorted(self._at.items()):
            if number >= len(parts):
                continue
            part = parts[number]
            epoch = self._epochs.get(number, NO_EPOCH)
            if epoch != NO_EPOCH and part.cut_at(epoch) < at:
                lost[number], cut[number] = at, part.cut_at(epoch)
                continue
            if not part.begin <= at <= part.end:
                lost[number] = at
                continue
            taken = [part.records[offset] for offset in range(at, part.end) if offset in part.records][
                : self._log.batch
            ]
            found += taken
            if taken:
                self._epochs[number] = taken[-1].leader_epoch
            self._at[number] = taken[-1].offset + 1 if taken else part.end
        if lost and not found:
            raise OffsetLost(f"{self._topic}: no such offset {lost}", positions=lost, cut=cut)
        if not found:
            time.sleep(min(timeout_s, 0.01))
        return found

    def bounds(self, partitions: Collection[int]) -> dict[int, tuple[int, int]]:
        self._log.check()
        parts = self._log.topics[self._topic].partitions
        return {number: (parts[number].begin, parts[number].end) for number in partitions}

    def stay(self) -> None:
        """Do nothing: it belongs to no group."""

    def ends(self) -> dict[int, int]:
        parts = self._log.topics[self._topic].partitions
        return {number: parts[number].end for number in self._at}

    def positions(self) -> dict[int, int]:
        return dict(self._at)

    def commit(self, offsets: Mapping[int, int], *, wait: bool = False) -> None:
        self._log.committed.setdefault(self._group, {}).update(offsets)

    def close(self) -> None:
        self._at = {}


class MemoryMember(MemorySource):
    """Reads what its group leaves to it, cooperatively; a rebalance happens in the polls of the members."""

    def __init__(self, log: MemoryLog, topic: str, group: str, owner: Owner, name: str | None = None) -> None:
        super().__init__(log, topic, group)
        self._owner, self._name = owner, name
        self.owned: set[int] = set()
        self._inherited: set[int] = set()  # owned, and the owner is not told yet
        self._taken_for_dead: set[int] = set()
        self._closed = False
        self._others = log.groups.setdefault((topic, group), [])
        away = next((member for member in self._others if name is not None and member._name == name), None)
        if away is None:
            self._others.append(self)
            return
        # what belongs to a name waits for it, and its place in the group with it
        self._others[self._others.index(away)] = self
        self.owned, self._inherited = set(away.owned), set(away.owned)

    def evict(self) -> None:
        """Take the member for dead, as a coordinator does; it hears of that in its next poll."""
        self._taken_for_dead |= self.owned
        self.owned = set()
        self._others.remove(self)

    def kill(self) -> None:
        """Forget the member, as after a SIGKILL and the session's timeout."""
        if self in self._others:
            self._others.remove(self)
        self.owned, self._at = set(), {}

    def poll(self, timeout_s: float) -> Sequence[Record]:
        if self not in self._others:
            if self._name is not None and any(member._name == self._name for member in self._others):
                raise StreamError(f"another worker has joined the group as {self._name!r}")
            lost, self._taken_for_dead, self._at = self._taken_for_dead, set(), {}
            self._others.append(self)
            if lost:
                self._owner.lost(lost)
        if self._log.reachable:
            self._rebalance()
        return super().poll(timeout_s)

    def stay(self) -> None:
        at, self._at = self._at, {}
        self.poll(0.0)
        self._at |= {part: offset for part, offset in at.items() if part in self.owned}

    def _rebalance(self) -> None:
        total = len(self._log.topics[self._topic].partitions)
        share, more = divmod(total, len(self._others))
        quota = share + (self._others.index(self) < more)
        if self._inherited:
            inherited, self._inherited = self._inherited, set()
            self._owner.assigned(inherited)
        surplus = sorted(self.owned)[quota:]
        if surplus:
            self._at = {part: at for part, at in self._at.items() if part not in surplus}
            self._owner.revoked(surplus)
            self.owned -= set(surplus)
        free = set(range(total)) - set().union(*(member.owned for member in self._others))
        added = sorted(free)[: max(0, quota - len(self.owned))]
        if added:
            self.owned |= set(added)
            self._owner.assigned(added)

    def seek(self, partition: int, offset: int, epoch: int = NO_EPOCH) -> None:
        assert partition in self.owned
        super().seek(partition, offset, epoch)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self.owned:
            self._owner.revoked(sorted(self.owned))
        if self._name is None:
            self.kill()
        else:  # its partitions wait for one of its name; `kill` is the end of the session
            self._at = {}


@dataclass(frozen=True)
class _Arrived:
    place: int
    settled: bool = True

    def offset(self, timeout_s: float) -> int:
        if self.place < 0:
            raise StreamError("a record was not acknowledged: the memory log is out of reach")
        return self.place


class MemorySink:
    """Writes; see `stream.source.Sink`."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log

    def send(
        self, topic: str, value: bytes, *, partition: int, key: bytes | None = None, headers: Headers = ()
    ) -> Delivery:
        if not self._log.reachable:
            return _Arrived(-1)
        part = self._log.topics[topic].partitions[partition]
        now = time.time_ns() // 1_000_000
        epoch = part.epoch if self._log.epochs else NO_EPOCH
        part.records[part.end] = MemoryRecord(topic, partition, part.end, key, value, tuple(headers), now, epoch)
        part.end += 1
        return _Arrived(part.end - 1)

    def flush(self, timeout_s: float) -> None:
        if not self._log.reachable:
            raise StreamError("records were not acknowledged: the memory log is out of reach")

    def close(self) -> None:
        """Nothing is open."""


class MemoryTransactions:
    """Writes transactions; see `stream.source.TransactionalSink`."""

    def __init__(self, log: MemoryLog, name: str, number: int) -> None:
        self._log, self._name, self._number = log, name, number
        self._waiting: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self._waiting = []
        yield
        if self._log.writers[self._name] != self._number or not self._log.reachable:
            raise StreamError(f"a newer {self._name} took over")
        sink = MemorySink(self._log)
        for arguments, options in self._waiting:
            sink.send(*arguments, **options)
        for topic in {arguments[0] for arguments, _ in self._waiting}:
            self._log.leave_hole(topic, 0)  # the marker of the transaction's end

    def send(self, *arguments: Any, **options: Any) -> Delivery:
        self._waiting.append((arguments, options))
        return _Arrived(0)

    def close(self) -> None:
        """Nothing is open."""
