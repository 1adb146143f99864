"""The tail of the topic: each event counts once, in the snapshot or here, and memory is bounded."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import BrokerUnavailable, StreamError
from common.events import ACTIONS, Action, Interaction, decode_event, encode_event
from common.recent import NOTHING, Recent
from common.settings import feedback_of, was_tried
from stream.live_users import LiveUsers
from stream.writer import PAUSE_S, EventWriter
from tests.memory_log import MemoryLog, MemoryRecord, MemorySink

TOPIC = "clicks"
BEGINNING: dict[str, dict[str, int]] = {}


def event(number: int, item: str, action: Action = "click", user: str = "u", value: float = 1.0) -> Interaction:
    return Interaction(f"e{number}", user, item, action, number, value)


def record(offset: int, value: bytes | None, partition: int = 0) -> MemoryRecord:
    return MemoryRecord(TOPIC, partition, offset, None, value, (), 0)


def tail(log: MemoryLog | None = None, **given: Any) -> LiveUsers:
    return LiveUsers(log or MemoryLog(), TOPIC, lambda: BEGINNING, **given)


def recent_slowly(events: list[tuple[int, int, Interaction]], user: str, read: dict[int, int]) -> Recent:
    """Say what a user did, by going through all events again."""
    mine = [event for partition, offset, event in events if event.user_id == user and offset >= read.get(partition, 0)]
    liked = [event.item_id for event in mine if feedback_of(event).sign > 0]
    tried = [event.item_id for event in mine if feedback_of(event).sign > 0 or was_tried(event)]
    rejected = []
    for place, one in enumerate(mine):
        later = [event for event in mine[place + 1 :] if event.item_id == one.item_id]
        liked_since = any(feedback_of(event).sign > 0 for event in later)
        if feedback_of(one).sign < 0 and not liked_since and one.item_id not in rejected:
            rejected.append(one.item_id)
    return Recent(tuple(liked), tuple(tried), tuple(rejected))


@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.sampled_from("ab"), st.integers(0, 3), st.sampled_from(ACTIONS)), max_size=30
    ),
    st.integers(0, 20),
    st.integers(0, 20),
)
def test_what_is_remembered_is_what_happened(rows: list[tuple[int, str, int, Action]], first: int, second: int) -> None:
    live, ends, events = tail(), [0, 0], []
    for number, (partition, user, item, action) in enumerate(rows):
        one = event(number, f"i{item}", action, user, value=float(1 + number % 5))
        events.append((partition, ends[partition], one))
        live.take(record(ends[partition], encode_event(one), partition))
        ends[partition] += 1
    read = {0: first, 1: second}
    offsets = {TOPIC: {str(part): offset for part, offset in read.items()}}
    for user in "ab":
        found, expected = live.since(user, offsets), recent_slowly(events, user, read)
        assert (found.liked, found.tried, set(found.rejected)) == (
            expected.liked, expected.tried, set(expected.rejected),
        )  # fmt: skip


def test_copies_and_what_is_no_event_do_not_count() -> None:
    live = tail()
    for offset, value in enumerate((encode_event(event(1, "a")), encode_event(event(1, "a")), b"{", None)):
        live.take(record(offset, value))
    live.take(record(4, encode_event(event(2, "a", "impression"))))
    assert live.since("u", BEGINNING) == Recent(("a",), ("a",))
    assert live.since("somebody", BEGINNING) is NOTHING


def test_memory_is_bounded_in_users_and_events() -> None:
    live = tail(users=3, events=2, ids=4)
    for number in range(20):
        live.take(record(number, encode_event(event(number, f"i{number}", user=f"u{number % 5}"))))
    # with three places for five users in turn, each has lost its place before its turn comes again
    assert [live.since(f"u{user}", BEGINNING).liked for user in range(5)] == [(), (), ("i17",), ("i18",), ("i19",)]
    for number in range(20, 25):
        live.take(record(number, encode_event(event(number, f"i{number}", user="u3"))))
    assert live.since("u3", BEGINNING).liked == ("i23", "i24")
    assert live.remembered == 4
    # an id that is forgotten is a new one
    live.take(record(25, encode_event(event(0, "again", user="u3"))))
    assert live.since("u3", BEGINNING).liked == ("i24", "again")


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("PAUSE_S", 0.02), ("LOOK_AGAIN_S", 0.05), ("POLL_S", 0.02)):
        monkeypatch.setattr(f"stream.tail.{name}", seconds)


def test_it_waits_for_the_topic_reads_new_partitions_and_outlives_the_broker() -> None:
    log = MemoryLog()
    live, writer = tail(log), EventWriter(log, TOPIC)
    with live.following():
        time.sleep(0.05)
        assert live.lag() is None
        writer.send(event(1, "a"))
        until(lambda: live.since("u", BEGINNING).liked == ("a",))
        until(lambda: live.lag() == 0)
        log.reachable = False
        until(lambda: live.lag() is None)
        log.reachable = True
        log.add_partitions(TOPIC, 3)
        MemorySink(log).send(TOPIC, encode_event(event(2, "b")), partition=2)
        until(lambda: live.since("u", BEGINNING).liked == ("a", "b"))
        log.delete_topic(TOPIC)
        until(lambda: live.lag() is None)
        log.ensure_topic(TOPIC)
        MemorySink(log).send(TOPIC, encode_event(event(1, "c")), partition=0)
        until(lambda: live.since("u", BEGINNING).liked == ("c",))
    assert not [thread for thread in threading.enumerate() if thread.name == "anabranch-live"]


def test_reading_begins_where_the_snapshot_ends_and_what_it_holds_is_forgotten() -> None:
    log = MemoryLog()
    log.ensure_topic(TOPIC)
    sink = MemorySink(log)
    for number in range(10):
        sink.send(TOPIC, encode_event(event(number, f"i{number}")), partition=0)
    served = {TOPIC: {"0": 4}}
    live = LiveUsers(log, TOPIC, lambda: dict(served))
    with live.following():
        until(lambda: live.remembered == 6)
        assert live.since("u", served).liked == tuple(f"i{number}" for number in range(4, 10))
        # the next snapshot has read more: its answers count less here; those under way still have the one before
        served[TOPIC] = {"0": 7}
        assert live.since("u", served).liked == ("i7", "i8", "i9")
        time.sleep(0.1)
        assert live.remembered == 6
        served[TOPIC] = {"0": 10}
        until(lambda: live.remembered == 3)
        assert live.since("u", served) == Recent()


def test_what_the_broker_deleted_is_passed_over() -> None:
    log = MemoryLog()
    log.ensure_topic(TOPIC)
    for number in range(6):
        MemorySink(log).send(TOPIC, encode_event(event(number, f"i{number}")), partition=0)
    log.delete_records(TOPIC, 0, before=3)
    live = LiveUsers(log, TOPIC, lambda: {TOPIC: {"0": 1}})
    with live.following():
        until(lambda: live.since("u", BEGINNING).liked == ("i3", "i4", "i5"))


def test_an_event_is_written_as_the_producer_writes_it() -> None:
    log = MemoryLog()
    log.ensure_topic(TOPIC, 3)
    one = replace(event(7, "a", user="jo"), request_id="r", context={"page": 2})
    with EventWriter(log, TOPIC) as writer:
        partition, offset = writer.send(one)
        assert writer.send(event(8, "b", user="jo")) == (partition, offset + 1)
    first = log.read(TOPIC)[0]
    assert (first.partition, first.offset, first.key) == (partition, offset, b"jo")
    assert first.value is not None
    assert decode_event(first.value) == one


def test_an_event_that_is_not_acknowledged_is_an_error_and_a_broker_that_is_away_is_left_alone() -> None:
    log, now = MemoryLog(), [0.0]
    writer = EventWriter(log, TOPIC, monotonic=lambda: now[0])
    log.reachable = False
    with pytest.raises(BrokerUnavailable):
        writer.send(event(1, "a"))
    log.reachable = True
    with pytest.raises(BrokerUnavailable):
        writer.send(event(1, "a"))
    now[0] = PAUSE_S
    assert writer.send(event(1, "a")) == (0, 0)
    log.reachable = False
    with pytest.raises(StreamError, match="send it again with the same event_id"):
        writer.send(event(2, "b"))
    log.reachable = True
    assert writer.send(event(2, "b")) == (0, 1)
