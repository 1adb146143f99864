"""Laws of every log behind `stream.source`: in memory, the embedded broker, Apache Kafka."""

import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest
from kafka import TopicPartition

from common.errors import InvalidSetting, OffsetLost, StreamError, UnknownName
from stream.kafka_log import KafkaLog
from stream.source import Log, Record, Source, TransactionalSink, in_time, read_to_end
from stream.topics import admin_client
from tests.memory_log import MemoryLog, MemoryRecord

# what a log cannot do, with the reason; docs/operations.md has the same list
CANNOT = {
    ("embedded", "delete_records"): "delete_records ends the broker's connection ('not yet implemented')",
    ("embedded", "beyond"): "a position above the end is answered with silence",
    ("embedded", "ends"): "the ends that it tells are too low",
    ("embedded", "members"): "two members that join at once may wait for more than 20 s",
    ("fast", "members"): "a cooperative hand-over with librdkafka is not built",
    ("embedded", "fencing"): "a second transactional writer of a name ends the connections of both",
}


def test_the_document_has_the_same_list() -> None:
    document = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text("utf-8")
    assert not [reason for reason in CANNOT.values() if reason not in document]


class Case:
    """One log, and the deeds that each kind of log does in its own way."""

    def __init__(self, kind: str, log: Log) -> None:
        self.kind, self.log = kind, log

    def needs(self, what: str) -> None:
        """Skip where the log cannot do it."""
        if (self.kind, what) in CANNOT:
            pytest.skip(f"{self.kind}: {CANNOT[self.kind, what]}")

    def delete_records(self, topic: str, partition: int, before: int) -> None:
        self.needs("delete_records")
        if isinstance(self.log, MemoryLog):
            self.log.delete_records(topic, partition, before)
        else:
            with admin_client(self.log.address) as client:
                client.delete_records({TopicPartition(topic, partition): before})

    def delete_topic(self, topic: str) -> None:
        if isinstance(self.log, MemoryLog):
            self.log.delete_topic(topic)
        else:
            with admin_client(self.log.address) as client:
                client.delete_topics([topic])


@pytest.fixture(
    params=["memory", "embedded", *(pytest.param(name, marks=pytest.mark.kafka) for name in ("kafka", "kafka-fast"))]
)
def case(request: pytest.FixtureRequest) -> Case:
    if request.param == "memory":
        return Case("memory", MemoryLog())
    if request.param == "kafka-fast":
        pytest.importorskip("confluent_kafka", reason="the extra `fast` is not installed")
        from stream.fast_log import FastLog

        return Case("fast", FastLog(request.getfixturevalue("kafka")))
    return Case(request.param, KafkaLog(request.getfixturevalue(request.param)))


@pytest.fixture
def reader(case: Case) -> Iterator[Callable[[str], Source]]:
    """Give a maker of sources that are closed at the end."""
    opened: list[Source] = []

    def make(topic: str) -> Source:
        opened.append(case.log.source(topic, f"group-{topic}"))
        return opened[-1]

    yield make
    for source in opened:
        source.close()


def put(log: Log, topic: str, values: list[bytes], partition: int = 0) -> list[int]:
    """Append the values; return their offsets."""
    sink = log.sink("contract")
    try:
        sent = [
            sink.send(topic, value, partition=partition, key=b"k" + value, headers=[("n", value)]) for value in values
        ]
        sink.flush(30)
        assert all(delivery.settled for delivery in sent)
        return [delivery.offset(0) for delivery in sent]
    finally:
        sink.close()


def numbered(first: int, last: int) -> list[bytes]:
    return [f"{number}".encode() for number in range(first, last)]


def take(source: Source, count: int) -> list[Record]:
    """Poll until `count` records are there, and once more."""
    found: list[Record] = []
    deadline = time.monotonic() + 20
    while len(found) < count and time.monotonic() < deadline:
        found += source.poll(0.1)
    return found + list(source.poll(0.1))


def values(records: list[Record]) -> list[bytes | None]:
    return [record.value for record in records]


def test_records_come_back_as_they_were_in_order(case: Case, topic: str, reader: Callable[[str], Source]) -> None:
    case.log.ensure_topic(topic, 2)
    offsets = put(case.log, topic, numbered(0, 30))
    assert offsets == list(range(30))
    put(case.log, topic, numbered(100, 110), partition=1)
    source = reader(topic)
    source.assign({0: None, 1: None})
    found = take(source, 40)
    for partition, expected in ((0, numbered(0, 30)), (1, numbered(100, 110))):
        mine = [record for record in found if record.partition == partition]
        assert values(mine) == expected
        assert [record.offset for record in mine] == list(range(len(expected)))
    first = found[0]
    assert (first.topic, first.key, list(first.headers)) == (topic, b"k" + (first.value or b""), [("n", first.value)])
    assert abs(first.timestamp / 1000 - time.time()) < 3600


def test_reading_starts_where_it_is_told(case: Case, topic: str, reader: Callable[[str], Source]) -> None:
    case.log.ensure_topic(topic, 2)
    put(case.log, topic, numbered(0, 20))
    put(case.log, topic, numbered(100, 105), partition=1)
    source = reader(topic)
    source.assign({0: 12})
    assert values(take(source, 8)) == numbered(12, 20)
    source.seek(0, 18)
    assert values(take(source, 2)) == numbered(18, 20)
    source.assign({1: 3})  # the other partition is not read any more
    put(case.log, topic, numbered(20, 25))
    assert values(take(source, 2)) == numbered(103, 105)


def test_two_readers_share_the_partitions(case: Case, topic: str, reader: Callable[[str], Source]) -> None:
    case.log.ensure_topic(topic, 2)
    one, other = reader(topic), reader(topic)
    one.assign({0: None})
    other.assign({1: None})
    put(case.log, topic, numbered(0, 10))
    put(case.log, topic, numbered(10, 20), partition=1)
    assert values(take(one, 10)) == numbered(0, 10)
    assert values(take(other, 10)) == numbered(10, 20)


def test_what_comes_later_is_read_too(case: Case, topic: str, reader: Callable[[str], Source]) -> None:
    case.log.ensure_topic(topic)
    source = reader(topic)
    source.assign({0: None})
    assert not source.poll(0.05)
    put(case.log, topic, numbered(0, 3))
    assert values(take(source, 3)) == numbered(0, 3)
    # exactly at the end is no lost offset
    source.seek(0, 3)
    assert not source.poll(0.1)


def test_ends_are_told(case: Case, topic: str, reader: Callable[[str], Source]) -> None:
    case.needs("ends")
    case.log.ensure_topic(topic, 2)
    put(case.log, topic, numbered(0, 9))
    source = reader(topic)
    assert source.bounds([0, 1]) == {0: (0, 9), 1: (0, 0)}
    source.assign({0: None})
    take(source, 9)
    assert source.ends() == {0: 9}


def test_a_deleted_offset_is_said_with_its_place(case: Case, topic: str, reader: Callable[[str], Source]) -> None:
    case.log.ensure_topic(topic)
    put(case.log, topic, numbered(0, 20))
    case.delete_records(topic, 0, 15)
    source = reader(topic)
    source.assign({0: 4})
    with pytest.raises(OffsetLost) as lost:
        take(source, 1)
    assert lost.value.positions == {0: 4}
    assert source.bounds(lost.value.positions) == {0: (15, 20)}
    source.seek(0, 15)
    assert values(take(source, 5)) == numbered(15, 20)
    source.assign({0: None})
    assert values(take(source, 5)) == numbered(15, 20)


def test_an_offset_beyond_the_end_is_said_with_its_place(
    case: Case, topic: str, reader: Callable[[str], Source]
) -> None:
    case.needs("beyond")
    case.log.ensure_topic(topic)
    put(case.log, topic, numbered(0, 5))
    source = reader(topic)
    source.assign({0: 50})
    with pytest.raises(OffsetLost) as lost:
        take(source, 1)
    assert lost.value.positions == {0: 50}
    source.seek(0, 5)
    put(case.log, topic, numbered(5, 7))
    assert values(take(source, 2)) == numbered(5, 7)


def test_a_lost_partition_does_not_stop_the_others(case: Case, topic: str, reader: Callable[[str], Source]) -> None:
    case.needs("beyond")
    case.log.ensure_topic(topic, 2)
    put(case.log, topic, numbered(0, 40), partition=1)
    source = reader(topic)
    source.assign({0: 50, 1: None})
    found: list[Record] = []
    lost: dict[int, int] = {}
    deadline = time.monotonic() + 20
    while (len(found) < 40 or not lost) and time.monotonic() < deadline:
        try:
            found += source.poll(0.1)
        except OffsetLost as error:
            lost |= error.positions
            source.seek(0, 0)
    assert lost == {0: 50}
    assert values(found) == numbered(0, 40)


def test_a_topic_made_again_is_another(case: Case, topic: str, reader: Callable[[str], Source]) -> None:
    first = case.log.ensure_topic(topic, 3)
    source = reader(topic)
    assert source.topic() == case.log.await_topic(topic, 0) == first
    assert first.partitions == (0, 1, 2)
    case.delete_topic(topic)
    deadline = time.monotonic() + 10
    while source.topic() is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert source.topic() is None
    second = case.log.ensure_topic(topic, 1)
    assert second.identity
    assert second.identity != first.identity


def test_a_topic_that_is_not_there_is_named(case: Case, topic: str) -> None:
    with pytest.raises(UnknownName, match=topic):
        case.log.await_topic(topic, 0.1)


def test_a_commit_changes_nothing_that_is_read(case: Case, topic: str, reader: Callable[[str], Source]) -> None:
    case.log.ensure_topic(topic)
    put(case.log, topic, numbered(0, 6))
    source = reader(topic)
    source.assign({0: None})
    take(source, 6)
    source.commit({0: 6}, wait=True)
    source.assign({0: None})
    assert values(take(source, 6)) == numbered(0, 6)


def undone(writer: TransactionalSink, topic: str) -> None:
    """Begin a transaction that comes to nothing."""
    with writer.transaction():
        writer.send(topic, b"undone", partition=0)
        raise ZeroDivisionError


def test_a_transaction_is_seen_whole_or_not_at_all(case: Case, topic: str, reader: Callable[[str], Source]) -> None:
    case.log.ensure_topic(topic)
    case.log.ensure_topic(f"{topic}-other")
    writer = case.log.transactional_sink(f"writer-{topic}")
    try:
        with pytest.raises(ZeroDivisionError):
            undone(writer, topic)
        with writer.transaction():
            writer.send(topic, b"one", partition=0, headers=[("h", b"v")])
            writer.send(f"{topic}-other", b"other", partition=0)
    finally:
        writer.close()
    put(case.log, topic, [b"two"])  # beyond the hole that the transaction's end leaves
    source, other = reader(topic), reader(f"{topic}-other")
    assert values(list(read_to_end(source, [0], {}))) == [b"one", b"two"]
    assert values(list(read_to_end(other, [0], {}))) == [b"other"]


def test_a_newer_writer_of_the_name_ends_the_older(case: Case, topic: str, reader: Callable[[str], Source]) -> None:
    case.needs("fencing")
    case.log.ensure_topic(topic)
    older = case.log.transactional_sink(f"writer-{topic}")
    newer = None
    try:
        transaction = older.transaction()
        transaction.__enter__()
        older.send(topic, b"older", partition=0)
        newer = case.log.transactional_sink(f"writer-{topic}")
        with newer.transaction():
            newer.send(topic, b"newer", partition=0)
        with pytest.raises(StreamError):
            transaction.__exit__(None, None, None)
    finally:
        older.close()
        if newer is not None:
            newer.close()
    assert values(list(read_to_end(reader(topic), [0], {}))) == [b"newer"]


def test_what_was_polled_is_given_as_it_was_sent() -> None:
    def sent(partition: int, offset: int, at: int) -> MemoryRecord:
        return MemoryRecord("t", partition, offset, None, b"", (), at)

    # a clock that went back keeps nobody from the order of its own partition
    records = [sent(0, 0, 10), sent(0, 1, 40), sent(0, 2, 30), sent(1, 7, 20), sent(1, 9, 50), sent(2, 3, 5)]
    found = [(record.partition, record.offset) for record in in_time(records)]
    assert found == [(2, 3), (0, 0), (1, 7), (0, 1), (0, 2), (1, 9)]
    assert list(in_time([])) == []


# --- members of a group -----------------------------------------------------------------------------------------------


class Noted:
    """An owner that notes what it is told, and begins each partition at its beginning."""

    def __init__(self) -> None:
        self.owned: set[int] = set()
        self.fresh: set[int] = set()
        self.told: list[tuple[str, list[int]]] = []

    def assigned(self, partitions: Collection[int]) -> None:
        assert not self.owned & set(partitions)
        self.owned |= set(partitions)
        self.fresh |= set(partitions)
        self.told.append(("assigned", sorted(partitions)))

    def revoked(self, partitions: Collection[int]) -> None:
        assert set(partitions) <= self.owned
        self.owned -= set(partitions)
        self.told.append(("revoked", sorted(partitions)))

    def lost(self, partitions: Collection[int]) -> None:
        self.owned -= set(partitions)
        self.told.append(("lost", sorted(partitions)))


@pytest.fixture
def members(case: Case, topic: str) -> Iterator[Callable[..., tuple[Source, Noted]]]:
    """Give a maker of members of one group, closed at the end."""
    case.needs("members")
    opened: list[Source] = []

    def make(name: str | None = None) -> tuple[Source, Noted]:
        owner = Noted()
        # a named one of a test that failed half-way is waited for no longer than this
        opened.append(case.log.member(topic, f"group-{topic}", owner, name=name, session_s=30.0 if name else 10.0))
        return opened[-1], owner

    yield make
    for source in opened:
        source.close()


def poll_until(found: Callable[[], bool], *sources: Source) -> list[Record]:
    """Poll members in turn until it is so; return what they read."""
    records: list[Record] = []
    deadline = time.monotonic() + 60
    while not found():
        assert time.monotonic() < deadline
        for source in sources:
            records += source.poll(0.1)
    return records


def test_a_lone_member_has_all_and_reads_from_where_it_is_told(
    case: Case, topic: str, members: Callable[[], tuple[Source, Noted]]
) -> None:
    case.log.ensure_topic(topic, 3)
    for partition in range(3):
        put(case.log, topic, numbered(0, 5), partition)
    source, owner = members()
    assert poll_until(lambda: len(owner.owned) == 3, source) == []
    assert source.poll(0.3) == []  # nothing before it is told from where
    for partition in range(3):
        source.seek(partition, partition)
    found = take(source, 12)
    assert sorted((record.partition, record.offset) for record in found) == [
        (partition, offset) for partition in range(3) for offset in range(partition, 5)
    ]


def test_members_share_and_what_stays_is_read_on(
    case: Case, topic: str, members: Callable[[], tuple[Source, Noted]]
) -> None:
    case.log.ensure_topic(topic, 4)
    one, first = members()
    poll_until(lambda: len(first.owned) == 4, one)
    for partition in range(4):
        one.seek(partition, 0)
    other, second = members()
    poll_until(lambda: len(second.owned) == 2, one, other)
    assert first.owned | second.owned == {0, 1, 2, 3}
    assert [what for what, _ in first.told] == ["assigned", "revoked"]  # those that stay are not told of
    for partition in second.owned:
        other.seek(partition, 0)
    for partition in range(4):
        put(case.log, topic, numbered(0, 5), partition)
    found = poll_until(lambda: sum(one.positions().values()) + sum(other.positions().values()) >= 20, one, other)
    assert len(found) + len(one.poll(0.2)) + len(other.poll(0.2)) == 20
    other.close()
    assert second.told[-1][0] == "revoked"
    poll_until(lambda: len(first.owned) == 4, one)
    assert not second.owned


def test_a_member_with_a_name_comes_back_and_nobody_else_is_told(
    case: Case, topic: str, members: Callable[..., tuple[Source, Noted]]
) -> None:
    case.log.ensure_topic(topic, 4)
    one, first = members("one")
    other, second = members("other")
    poll_until(lambda: len(first.owned) == len(second.owned) == 2, one, other)
    told, had = list(first.told), set(second.owned)
    other.close()
    assert second.told[-1] == ("revoked", sorted(had))  # the last chance to store, all the same
    for _ in range(3):
        one.poll(0.1)
    again, third = members("other")
    poll_until(lambda: third.owned == had, one, again)
    for _ in range(15):  # longer than a heartbeat takes to tell of a rebalance
        one.poll(0.1)
        again.poll(0.1)
    assert first.told == told
    assert third.told == [("assigned", sorted(had))]


def test_a_name_that_another_member_takes_is_lost(
    case: Case, topic: str, members: Callable[..., tuple[Source, Noted]]
) -> None:
    case.log.ensure_topic(topic, 2)
    one, first = members("same")
    poll_until(lambda: len(first.owned) == 2, one)
    other, second = members("same")
    poll_until(lambda: len(second.owned) == 2, other)
    with pytest.raises(StreamError, match="another worker has joined the group as 'same'"):
        poll_until(lambda: False, one)


@pytest.mark.kafka
def test_another_client_says_that_it_cannot(kafka: str, topic: str) -> None:
    pytest.importorskip("confluent_kafka", reason="the extra `fast` is not installed")
    from stream.fast_log import FastLog

    with pytest.raises(InvalidSetting, match="leave out --client"):
        FastLog(kafka).member(topic, "group", Noted())
