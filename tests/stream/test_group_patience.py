"""Workers that share a topic: one that is slow stays a member, one that has a name finds its partitions again."""

from pathlib import Path

import pytest

from common.errors import InvalidSetting, StreamError
from common.events import decode_event
from stream.partitions import PartitionStore
from tests.memory_log import MemoryLog
from tests.stream.crew import PARTS, Crew, check_each_once, ones_of_a_kind, send, settings_of

pytestmark = pytest.mark.usefixtures("no_power_cuts")


def test_a_worker_that_learns_for_long_says_that_it_is_there(
    log: MemoryLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = ones_of_a_kind(60)
    send(log, events)
    crew = Crew(log, tmp_path, checkpoint_events=10_000)
    worker = crew.join("a")
    stays: list[int] = []
    monkeypatch.setattr(crew.member("a"), "stay", lambda: stays.append(len(worker.shards)))
    crew.step(2)
    assert not stays  # there was a poll a moment ago
    with monkeypatch.context() as patch:
        patch.setattr("stream.group_worker._STAY_S", 0.0)
        before = worker._events()
        crew.step(2)
    assert len(stays) == worker._events() - before > 0
    check_each_once(crew.finish(), events)


def test_what_goes_within_a_batch_is_left_to_its_next_owner(
    log: MemoryLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.group_worker._STAY_S", 0.0)
    log.batch = 50
    events = ones_of_a_kind(200)
    send(log, events)
    seen = []

    def decode(value: bytes) -> object:
        seen.append(value)
        if len(seen) == 30:  # in the midst of the first batch
            crew.join("b")
        return decode_event(value)

    crew = Crew(log, tmp_path, checkpoint_events=10_000, decode=decode)
    first = crew.join("a")
    crew.step(2)
    assert len(first.shards) == PARTS // 2
    assert len(seen) < 200  # of what went nothing more was learned
    stored = PartitionStore(tmp_path)
    gone = set(range(PARTS)) - first.shards.keys()
    assert any(stored.mark(number) is not None for number in gone)
    check_each_once(crew.finish(), events)


def test_a_worker_with_a_name_is_waited_for(log: MemoryLog, tmp_path: Path) -> None:
    """It leaves and comes back: its partitions are its own again, and the other is told of nothing."""
    events = ones_of_a_kind(150)
    send(log, events[:60])
    crew = Crew(log, tmp_path)
    other = crew.join("a")
    named = crew.join("b", member="b")
    crew.step(4)
    had = set(named.shards)
    kept = {number: shard.claim.number for number, shard in other.shards.items()}
    assert len(had) == PARTS // 2
    crew.leave("b")
    send(log, events[60:100])
    crew.step(4)
    assert {number: shard.claim.number for number, shard in other.shards.items()} == kept
    again = crew.join("b", member="b")
    crew.step(2)
    assert set(again.shards) == had
    assert {number: shard.claim.number for number, shard in other.shards.items()} == kept
    crew.kill("b")  # and when the session has ended, others have them
    send(log, events[100:])
    crew.step(3)
    assert len(other.shards) == PARTS
    check_each_once(crew.finish(), events)


def test_a_name_is_one_workers(log: MemoryLog, tmp_path: Path) -> None:
    events = ones_of_a_kind(80)
    send(log, events)
    crew = Crew(log, tmp_path)
    first = crew.join("a", member="same")
    crew.step(2)
    crew.join("b", member="same")
    with pytest.raises(StreamError, match="another worker has joined the group as 'same'"):
        first.step()
    del crew.workers["a"]
    check_each_once(crew.finish(), events)
    with pytest.raises(InvalidSetting, match="member 'no name'"):
        settings_of(tmp_path, member="no name")
    with pytest.raises(InvalidSetting, match="session_seconds"):
        settings_of(tmp_path, session_seconds=1.0)
