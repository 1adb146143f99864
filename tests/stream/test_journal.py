"""A journal: a producer that died is gone on with, without gaps and without repeats."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InvalidSetting, StreamError
from common.events import Interaction, decode_event
from stream.kafka_log import KafkaLog, partition_of
from stream.producer import ProduceReport, produce
from stream.source import Log
from tests.memory_log import MemoryLog, MemorySink
from tests.stream.topics import some_events, take


class Crash(BaseException):
    """Stands in for a death: nothing catches it."""


def send(log: Log, journal: Path, events: Iterator[Interaction] | list[Interaction], **options: Any) -> ProduceReport:
    return produce(events, log=log, topic="clicks", journal=journal, **options)


def dies_at(events: list[Interaction], number: int) -> Iterator[Interaction]:
    yield from events[:number]
    raise Crash


def values(log: MemoryLog) -> list[str]:
    return [decode_event(record.value or b"").event_id for record in log.read("clicks")]


@settings(max_examples=60)
@given(st.lists(st.integers(0, 40), max_size=5), st.integers(1, 3), st.booleans())
def test_deaths_leave_no_gap_and_no_repeat(
    tmp_path_factory: pytest.TempPathFactory, deaths: list[int], partitions: int, forgetful: bool
) -> None:
    journal = tmp_path_factory.mktemp("journal") / "sent.json"
    events = some_events(40)
    log = MemoryLog()
    for death in deaths:
        before = journal.read_bytes() if journal.is_file() else None
        with pytest.raises(Crash):
            send(log, journal, dies_at(events, death), partitions=partitions)
        if forgetful and before is not None:  # the last note did not reach the disk
            journal.write_bytes(before)
    report = send(log, journal, events, partitions=partitions)
    assert Counter(values(log)) == Counter(event.event_id for event in events)
    assert report.sent + report.resumed_from == 40
    assert json.loads(journal.read_bytes())["acked"] == 40
    for user in {event.user_id for event in events}:  # in each user's own order
        mine = [event.event_id for event in events if event.user_id == user]
        assert [event_id for event_id in values(log) if event_id in mine] == mine
    assert send(log, journal, events, partitions=partitions).sent == 0


def test_a_note_in_the_middle_says_what_is_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.producer._NOTE_EVERY_S", 0.0)
    log, events, journal = MemoryLog(), some_events(30), tmp_path / "sent.json"
    with pytest.raises(Crash):
        send(log, journal, dies_at(events, 20))
    assert json.loads(journal.read_bytes())["acked"] == 20
    assert send(log, journal, events).resumed_from == 20
    assert values(log) == [event.event_id for event in events]


def test_killed_producers_leave_no_gap(servers: str, topic: str, tmp_path: Path) -> None:
    partitions = 3
    command = [sys.executable, "-m", "tests.stream.dying_producers", servers, topic, str(tmp_path / "sent.json")]
    deaths = ["1", "700", "1501"]
    done = subprocess.run(
        [*command, "3000", str(partitions), *deaths, "0"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.split() == ["9"] * len(deaths) + ["0"], done.stderr
    events = some_events(3000)
    found = [decode_event(record.value) for record in take(servers, topic, 3000)]
    # a request that the dead one had handed over may come late, then it is there twice; a gap never is
    assert {event.event_id for event in found} == {event.event_id for event in events}
    by_id: dict[str, Interaction] = {}
    for event in found:
        by_id.setdefault(event.event_id, event)
    first = list(by_id.values())
    for place in range(partitions):
        expected = [event for event in events if partition_of(event.user_id, partitions) == place]
        assert [event for event in first if partition_of(event.user_id, partitions) == place] == expected
    assert len(found) - len(first) <= 1000


def test_another_input_is_refused(tmp_path: Path) -> None:
    log, journal = MemoryLog(), tmp_path / "sent.json"
    send(log, journal, some_events(20))
    for other in (some_events(20, seed=1), some_events(12)):
        with pytest.raises(StreamError, match="first 20 events of the input are not those"):
            send(log, journal, other)
    assert len(values(log)) == 20
    # a longer input with the same beginning is new data
    assert send(log, journal, some_events(25)).sent == 5


def test_another_topic_is_refused(tmp_path: Path) -> None:
    log, journal = MemoryLog(), tmp_path / "sent.json"
    send(log, journal, some_events(5))
    with pytest.raises(InvalidSetting, match="is of topic 'clicks'"):
        produce(some_events(5), log=log, topic="others", journal=journal)
    log.delete_topic("clicks")
    with pytest.raises(StreamError, match="was made anew"):
        send(log, journal, some_events(5))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema":1,"topic":"clicks"}', '{"schema":2}'])
def test_a_file_that_is_no_journal_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "sent.json").write_text(content)
    with pytest.raises(InvalidSetting, match=r"sent\.json"):
        send(MemoryLog(), tmp_path / "sent.json", some_events(5))


def test_start_and_journal_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="with a journal"):
        send(MemoryLog(), tmp_path / "sent.json", some_events(5), start_at=2)


def test_a_stop_and_a_limit_are_gone_on_from(tmp_path: Path) -> None:
    log, journal, events = MemoryLog(), tmp_path / "sent.json", some_events(30)
    assert send(log, journal, events, limit=10).sent == 10
    asked = iter([False] * 15)
    stopped = produce(events, log=log, topic="clicks", journal=journal, stopping=lambda: next(asked, True))
    assert (stopped.sent, stopped.resumed_from) == (5, 10)
    asked = iter([False] * 4)  # stopped while it passes over what was sent: nothing is forgotten
    produce(events, log=log, topic="clicks", journal=journal, stopping=lambda: next(asked, True))
    assert send(log, journal, events).sent == 15
    assert values(log) == [event.event_id for event in events]


def test_what_was_not_acknowledged_is_not_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, journal, events = MemoryLog(), tmp_path / "sent.json", some_events(20)
    real, left = MemorySink.send, [12]

    def failing(self: MemorySink, *arguments: object, **options: object) -> object:
        left[0] -= 1
        log.reachable = left[0] >= 0
        return real(self, *arguments, **options)  # type: ignore[arg-type]  # handed on

    monkeypatch.setattr(MemorySink, "send", failing)
    with pytest.raises(StreamError, match=r"8 of 20 records were not acknowledged.*12 are on clicks"):
        send(log, journal, events)
    monkeypatch.setattr(MemorySink, "send", real)
    log.reachable = True
    assert send(log, journal, events).sent == 8
    assert values(log) == [event.event_id for event in events]


def test_the_tail_may_hold_what_is_no_event(tmp_path: Path) -> None:
    log, journal, events = MemoryLog(), tmp_path / "sent.json", some_events(10)
    send(log, journal, events[:4])
    log.sink("somebody else").send("clicks", b"not an event", partition=0)
    assert send(log, journal, events).sent == 6


def test_the_embedded_broker_keeps_a_journal_too(embedded: str, topic: str, tmp_path: Path) -> None:
    log = KafkaLog(embedded)
    events = some_events(50)
    produce(events[:20], log=log, topic=topic, journal=tmp_path / "sent.json")
    report = produce(events, log=log, topic=topic, journal=tmp_path / "sent.json")
    assert (report.sent, report.resumed_from) == (30, 20)
    assert [decode_event(record.value) for record in take(embedded, topic, 50)] == events
