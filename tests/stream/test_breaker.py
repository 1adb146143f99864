"""The circuit breaker: when it trips, what is stored then, and when a checkpoint waits for it."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidSetting, TooManyBadRecords
from common.events import encode_event
from stream.breaker import Breaker
from stream.checkpoint import CheckpointStore
from stream.consumer import StreamWorker, WorkerSettings
from stream.replay import read_letters
from stream.state import Outcome
from tests.memory_log import MemoryLog
from tests.stream.test_state import fed
from tests.stream.topics import small_mf, some_events

GOOD, BAD = Outcome("learned"), Outcome("dead", "MalformedEvent", "no JSON")


@given(st.lists(st.booleans(), max_size=80), st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.integers(1, 12))
def test_it_trips_when_a_window_holds_too_many(bad: list[bool], share: float, window: int) -> None:
    breaker = Breaker(share, window)
    expected = False
    for number, is_bad in enumerate(bad):
        breaker.count(BAD if is_bad else GOOD)
        first = number - number % window
        expected = expected or sum(bad[first : number + 1]) > share * window
        assert breaker.tripped == expected
        if expected:
            break


def test_a_checkpoint_begins_a_window() -> None:
    breaker = Breaker(0.5, 10)
    for _ in range(5):
        breaker.count(BAD)
    assert breaker.suspects
    assert not breaker.tripped
    breaker.begin()
    assert not breaker.suspects
    for _ in range(5):
        breaker.count(BAD)
    assert not breaker.tripped
    breaker.count(BAD)
    assert breaker.tripped


@pytest.mark.parametrize(("share", "window"), [(-0.1, 5), (1.1, 5), (float("nan"), 5), (0.5, 0)])
def test_settings_that_cannot_be(share: float, window: int) -> None:
    with pytest.raises(InvalidSetting, match="bad share"):
        Breaker(share, window)


def log_of(values: list[bytes]) -> MemoryLog:
    log = MemoryLog()
    log.ensure_topic("clicks")
    sink = log.sink("test")
    for value in values:
        sink.send("clicks", value, partition=0)
    return log


def worker(log: MemoryLog, store: Path, **options: object) -> StreamWorker:
    # a checkpoint is due by the count of records alone: on a busy machine seconds pass anywhere
    fixed: dict[str, Any] = {"idle_timeout_s": 0.05, "checkpoint_seconds": 1e6, **options}
    settings = WorkerSettings("memory:1", "clicks", store, **fixed)
    return StreamWorker(settings, small_mf(), log=log)


def test_the_worker_stops_before_the_window_and_reads_it_again_once_mended(tmp_path: Path) -> None:
    good = [encode_event(event) for event in some_events(100)]
    # from offset 60 on somebody sends another schema
    log = log_of([*good[:60], *(value.replace(b'"v":1', b'"v":2') for value in good[60:])])
    options: dict[str, object] = {"checkpoint_events": 20, "bad_share": 0.5, "bad_window": 10}
    with pytest.raises(TooManyBadRecords) as stopped:
        worker(log, tmp_path, **options).run()
    text = str(stopped.value)
    for part in ("6 of 6 records of clicks", "schema version 2", "at most 50% of 10", "offset 60", "--bad-share 1"):
        assert part in text
    checkpoint = CheckpointStore(tmp_path).newest(pytest.fail)
    assert checkpoint is not None
    assert checkpoint.details["offsets"] == {"clicks": {"0": 60}}
    assert not read_letters(log, "clicks")  # none was sent: all are read again
    # again: the same end, nothing moved
    with pytest.raises(TooManyBadRecords):
        worker(log, tmp_path, **options).run()
    # mended: the same records can be read now
    log.truncate("clicks", 0, 60)
    sink = log.sink("test")
    for value in good[60:]:
        sink.send("clicks", value, partition=0)
    mended = worker(log, tmp_path, **options)
    mended.run()
    assert mended.state.learner.state_sha256() == fed(good).learner.state_sha256()


def test_a_full_window_that_was_well_is_forgotten(tmp_path: Path) -> None:
    good = [encode_event(event) for event in some_events(40)]
    log = log_of([*good[:10], *([b"bad"] * 5), *good[10:15], *([b"bad"] * 5), *good[15:]])
    report = worker(log, tmp_path, bad_share=0.5, bad_window=10, checkpoint_events=1000).run()
    assert report.dead_letters == 10
    assert len(read_letters(log, "clicks")) == 10


def test_a_share_of_one_never_stops(tmp_path: Path) -> None:
    log = log_of([b"bad"] * 50)
    report = worker(log, tmp_path, bad_share=1.0, bad_window=10).run()
    assert (report.events, report.dead_letters, len(read_letters(log, "clicks"))) == (50, 50, 50)


def test_a_suspect_window_holds_the_checkpoint_back_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.consumer.HOLD_S", 1e6)
    bad = [b"bad"] * 8
    log = log_of([*bad, b"bad", b"bad", b"bad"])
    # every record would be a checkpoint; none is written, so the window is whole when it trips
    with pytest.raises(TooManyBadRecords):
        worker(log, tmp_path / "held", bad_share=0.5, bad_window=20, checkpoint_events=3).run()
    checkpoint = CheckpointStore(tmp_path / "held").newest(pytest.fail)
    assert checkpoint is None
    monkeypatch.setattr("stream.consumer.HOLD_S", -1e6)
    report = worker(log, tmp_path / "not held", bad_share=0.5, bad_window=20, checkpoint_events=3).run()
    assert report.dead_letters == 11
