"""The clicks that one process notes and others read: what `LiveUsers` would say, whatever is written meanwhile."""

import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.events import ACTIONS, Action, encode_event
from common.recent import NOTHING, Recent
from stream import click_table
from stream.click_table import CAUGHT_UP, MOST_BEHIND, MOST_NOTES, ClickReader, ClickTable
from stream.live_users import LiveUsers
from stream.recent_notes import Note
from stream.tail import Tail
from tests.memory_log import MemoryLog
from tests.stream.test_live_users import BEGINNING, TOPIC, event, record

IDS = tuple(f"i{row}" for row in range(4))


def index(item: str) -> int | None:
    return IDS.index(item) if item in IDS else None


def table(folder: Path, events: int = 64, buckets: int = 2) -> ClickTable:
    """Return a table that readers see at once; two buckets, so that users share them."""
    made = ClickTable(folder / "clicks", index, events, buckets)
    made.tell(0)
    return made


@pytest.fixture
def reader(tmp_path: Path) -> ClickReader:
    return ClickReader(tmp_path / "clicks", TOPIC, lambda: IDS)


def note(offset: int, item: str = "i0", sign: int = 1) -> Note:
    return Note("0", offset, item, sign, tried=False)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.sampled_from(ACTIONS)), max_size=40),
    st.integers(0, 20),
    st.integers(0, 20),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_says_what_one_process_alone_would(
    tmp_path: Path, rows: list[tuple[str, int, Action]], first: int, second: int
) -> None:
    alone = LiveUsers(MemoryLog(), TOPIC, lambda: BEGINNING)
    tail = Tail(MemoryLog(), TOPIC, lambda: BEGINNING, table(tmp_path))
    reader = ClickReader(tmp_path / "clicks", TOPIC, lambda: IDS)
    ends = [0, 0]
    for number, (user, item, action) in enumerate(rows):
        partition = "abc".index(user) % 2
        # items 4 and 5 are not in the catalogue
        raw = encode_event(event(number, f"i{item}", action, user, value=float(1 + number % 5)))
        for each in (alone, tail):
            each.take(record(ends[partition], raw, partition))
        ends[partition] += 1
    offsets = {TOPIC: {"0": first, "1": second}}
    for user in "abc":
        assert _in_catalogue(reader.since(user, offsets)) == _in_catalogue(alone.since(user, offsets))
        assert bool(reader.since(user, offsets).tried) == bool(alone.since(user, offsets).tried)


def test_events_from_before_partitions_were_added_count_too(tmp_path: Path, reader: ClickReader) -> None:
    notes = table(tmp_path)
    # the user's key was of partition 0 first, and is of partition 1 since; the snapshot is behind in 0 alone
    for offset in range(3):
        notes.add("moved", note(offset, f"i{offset}"))
    for offset in range(MOST_BEHIND - 1):
        notes.add("moved", Note("1", offset, "i3", 1, tried=False))
    assert reader.since("moved", {TOPIC: {"0": 1, "1": MOST_BEHIND}}).liked == ("i1", "i2")


def _in_catalogue(recent: Recent) -> Recent:
    def known(ids: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(each for each in ids if each in IDS)

    return Recent(known(recent.liked), known(recent.tried), known(recent.rejected))


def test_the_oldest_events_make_room_and_a_user_has_so_many(tmp_path: Path, reader: ClickReader) -> None:
    notes = table(tmp_path, events=64, buckets=2)
    for number in range(100):
        notes.add(f"u{number % 4}", note(number, f"i{number % 3}"))
    for user in range(4):
        expected = [f"i{number % 3}" for number in range(36, 100) if number % 4 == user]
        assert list(reader.since(f"u{user}", {}).liked) == expected
    wide = table(tmp_path, events=1_024, buckets=2)
    for number in range(MOST_NOTES + 50):
        wide.add("busy", note(number))
    assert len(reader.since("busy", {}).liked) == MOST_NOTES


def test_what_is_written_over_while_it_is_read_is_left_out(tmp_path: Path, reader: ClickReader) -> None:
    """A user's events name the user: one of somebody else's among them, or half of one, would show."""
    notes, stop = table(tmp_path, events=32, buckets=4), threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            user = number % 4
            notes.add(f"u{user}", Note("0", number, f"i{user}", 1, tried=False))
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    found = 0
    try:
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            for user in range(4):
                liked = reader.since(f"u{user}", {}).liked
                assert set(liked) <= {f"i{user}"}
                assert len(liked) <= 32
                found += len(liked)
    finally:
        stop.set()
        writer.join()
    assert found > 100


def test_a_walk_is_bounded_where_others_fill_the_bucket(
    tmp_path: Path, reader: ClickReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(click_table, "MOST_STEPS", 10)
    notes = table(tmp_path, buckets=1)
    notes.add("quiet", note(0))
    for number in range(1, 10):
        notes.add("busy", note(number))
    assert reader.since("quiet", {}).liked == ("i0",)
    notes.add("busy", note(10))
    assert reader.since("quiet", {}) is NOTHING


def test_a_table_is_taken_over_once_it_has_caught_up(tmp_path: Path, reader: ClickReader) -> None:
    assert reader.since("u", {}) is NOTHING
    assert reader.lag() is None
    before = table(tmp_path)
    before.add("u", note(0, "i1"))
    assert reader.since("u", {}).liked == ("i1",)
    assert reader.lag() == 0
    after = ClickTable(tmp_path / "clicks", index, 64, 2)
    after.add("u", note(0, "i2"))
    after.tell(None)
    after.tell(CAUGHT_UP + 1)
    assert reader.since("u", {}).liked == ("i1",)
    after.tell(CAUGHT_UP)
    assert reader.since("u", {}).liked == ("i2",)
    assert reader.lag() == CAUGHT_UP
    after.tell(None)
    assert reader.lag() is None
    after.clear()
    assert reader.since("u", {}) is NOTHING
    after.add("u", note(1, "i3"))
    assert reader.since("u", {}).liked == ("i3",)


def test_a_writer_that_fell_silent_does_not_read(
    tmp_path: Path, reader: ClickReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(tmp_path)
    assert reader.lag() == 0
    monkeypatch.setattr(click_table, "SILENT_S", -1.0)
    assert reader.lag() is None
