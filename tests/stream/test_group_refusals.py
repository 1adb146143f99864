"""Workers that share a topic: what must not happen in silence."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import (
    BrokerUnavailable,
    CheckpointMismatch,
    InvalidSetting,
    OffsetLost,
    StoreMismatch,
    TooManyBadRecords,
)
from stream.group_worker import GroupWorker
from stream.learner.pointwise import PointwiseMF
from stream.partitions import PartitionStore
from tests.memory_log import MemoryLog
from tests.stream.crew import PARTS, TOPIC, Crew, alone, ones_of_a_kind, run_one, send, settings_of
from tests.stream.topics import MALFORMED, small_mf, some_events

pytestmark = pytest.mark.usefixtures("no_power_cuts")


def test_each_bad_record_is_one_dead_letter(log: MemoryLog, tmp_path: Path) -> None:
    send(log, some_events(300))
    sink = log.sink("test")
    for number, value in enumerate(MALFORMED):
        sink.send(TOPIC, value, partition=number % PARTS)
    crew = Crew(log, tmp_path)
    crew.join("a")
    crew.step(2)
    crew.join("b")
    whole = crew.finish()
    assert whole.dead_letters == len(MALFORMED)
    assert sorted(letter.value or b"" for letter in log.read(f"{TOPIC}.dead")) == sorted(MALFORMED)


def test_a_schema_break_stops_the_worker_and_moves_nothing(log: MemoryLog, tmp_path: Path) -> None:
    send(log, some_events(100))
    run_one(log, tmp_path, bad_share=0.2, bad_window=20, idle_timeout_s=0.05)
    before = PartitionStore(tmp_path).newest(3, pytest.fail)
    assert before is not None
    sink = log.sink("test")
    for _ in range(30):
        sink.send(TOPIC, b"{", partition=3)
    with pytest.raises(TooManyBadRecords, match="the last checkpoint of partition 3"):
        run_one(log, tmp_path, bad_share=0.2, bad_window=20)
    after = PartitionStore(tmp_path).newest(3, pytest.fail)
    assert after is not None
    assert after[1].details["offsets"] == before[1].details["offsets"]
    assert f"{TOPIC}.dead" not in log.topics


def test_a_record_that_is_gone_follows_the_policy(log: MemoryLog, tmp_path: Path) -> None:
    send(log, some_events(200))
    run_one(log, tmp_path, until_events=80)
    log.delete_records(TOPIC, 3, log.topics[TOPIC].partitions[3].end - 2)
    with pytest.raises(OffsetLost, match="partition 3 offset"):
        run_one(log, tmp_path, idle_timeout_s=0.05)
    notices: list[str] = []
    report = run_one(log, tmp_path, notices, idle_timeout_s=0.05, on_lost_offset="earliest")
    assert any("going on from the earliest" in notice for notice in notices)
    assert report.offsets[TOPIC] == {str(n): part.end for n, part in enumerate(log.topics[TOPIC].partitions)}
    assert 80 < report.events < 200


def test_a_topic_that_was_made_anew_follows_the_policy(log: MemoryLog, tmp_path: Path) -> None:
    send(log, some_events(80))
    run_one(log, tmp_path, idle_timeout_s=0.05)
    log.delete_topic(TOPIC)
    send(log, ones_of_a_kind(40))
    with pytest.raises(CheckpointMismatch, match="--on-new-topic continue"):
        run_one(log, tmp_path, idle_timeout_s=0.05)
    report = run_one(log, tmp_path, idle_timeout_s=0.05, on_new_topic="continue")
    assert report.events == 120
    assert sum(report.offsets[TOPIC].values()) == 40


def test_a_topic_that_is_made_anew_meanwhile_is_noticed(log: MemoryLog, tmp_path: Path) -> None:
    send(log, some_events(80))
    crew = Crew(log, tmp_path, on_new_topic="continue", checkpoint_events=10_000)
    worker = crew.join("a")
    crew.step(8)
    log.delete_topic(TOPIC)
    send(log, ones_of_a_kind(40))
    worker._look_again()
    assert "is a new one" in crew.notices[0]
    whole = crew.finish()
    assert whole.events == 120
    assert whole.topic_ids == {TOPIC: log.info(TOPIC).identity}


def test_a_broker_that_stays_away_ends_the_worker_after_it_stored(log: MemoryLog, tmp_path: Path) -> None:
    send(log, ones_of_a_kind(50))
    crew = Crew(log, tmp_path, checkpoint_events=10_000, broker_wait_s=0.0)
    worker = crew.join("a")
    crew.step(8)
    log.reachable = False
    with pytest.raises(BrokerUnavailable):
        worker._look_again()
    log.reachable = True
    assert crew.stored().events == 50


def test_stores_of_another_kind_are_refused(log: MemoryLog, tmp_path: Path) -> None:
    send(log, some_events(40))
    alone(log, tmp_path / "alone")
    with pytest.raises(StoreMismatch, match="leave out --scale-out"):
        run_one(log, tmp_path / "alone")
    run_one(log, tmp_path / "shared", idle_timeout_s=0.05)
    with pytest.raises(StoreMismatch, match="add --scale-out"):
        alone(log, tmp_path / "shared")
    log.ensure_topic("other", PARTS)
    other = replace(settings_of(tmp_path / "shared"), topic="other")
    with pytest.raises(StoreMismatch, match="learns topic clicks"):
        GroupWorker(other, small_mf(), log=log).run()
    with pytest.raises(CheckpointMismatch, match="learner"):
        GroupWorker(settings_of(tmp_path / "shared"), small_mf(seed=9), log=log).run()


def test_more_partitions_than_before_are_refused(log: MemoryLog, tmp_path: Path) -> None:
    """With another number of partitions the users' keys lead elsewhere, and their rows would stay behind."""
    send(log, some_events(40))
    crew = Crew(log, tmp_path)
    worker = crew.join("a")
    crew.step(2)
    log.add_partitions(TOPIC, PARTS + 1)
    with pytest.raises(CheckpointMismatch, match="9 partitions now"):
        crew.step(3)
    assert len(worker.shards) == PARTS
    worker.checkpoint()
    crew.kill("a")
    with pytest.raises(CheckpointMismatch, match="9 partitions now"):
        run_one(log, tmp_path)


def test_a_learner_that_cannot_be_shared_is_refused_before_anything_is_read(log: MemoryLog, tmp_path: Path) -> None:
    make: Callable[[], PointwiseMF] = PointwiseMF
    with pytest.raises(InvalidSetting, match="can be shared"):
        GroupWorker(settings_of(tmp_path), make(), log=log)
