"""The worker on real brokers: what it learns, stores, refuses, and survives."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka import KafkaConsumer, TopicPartition

from common.errors import BrokerUnavailable, CheckpointMismatch, InvalidSetting, OffsetLost, StoreMismatch, UnknownName
from common.events import Interaction, decode_event, encode_event
from common.snapshots import MFSnapshot, read_snapshot
from common.store import verify_folder
from stream.broker import EmbeddedBroker
from stream.checkpoint import SNAPSHOTS, STATE_NAME, CheckpointStore, sequence_name, sequences
from stream.consumer import LearnReport, StreamWorker, WorkerSettings, pause_after
from stream.learner.mf import MF
from stream.snapshot import current_snapshot
from stream.state import ItemTexts
from stream.topics import admin_client, dead_topic, ensure_topic
from tests.stream.dying_workers import settings_of
from tests.stream.test_state import fed
from tests.stream.topics import put, records_with_faults, small_learner, small_mf, some_events, some_texts, take

TOTAL = 300


def learn(servers: str, topic: str, store: Path, *, notices: list[str] | None = None, **options: Any) -> LearnReport:
    worker_options = {name: options.pop(name) for name in ("items", "decode", "stopping") if name in options}
    options.setdefault("idle_timeout_s", 0.5 if "until_events" not in options else None)
    settings = WorkerSettings(servers, topic, store, **options)
    notice: Callable[[str], None] = (notices if notices is not None else []).append
    return StreamWorker(settings, small_mf(), notice=notice, **worker_options).run()


def test_it_learns_what_the_records_say(servers: str, topic: str, tmp_path: Path) -> None:
    records, malformed = records_with_faults(TOTAL)
    put(servers, topic, records)
    report = learn(servers, topic, tmp_path, until_events=TOTAL)
    expected = fed(records)
    assert report.state_sha256 == expected.learner.state_sha256()
    assert (report.events, report.learned, report.duplicates_skipped, report.dead_letters, report.resumed_from) == (
        TOTAL,
        expected.learned,
        expected.duplicates_skipped,
        len(malformed),
        0,
    )
    assert report.offsets == {topic: {"0": TOTAL}}
    assert report.drift_alarms == expected.progressive.drift_alarms
    for name, row in expected.progressive.rows().items():
        assert report.metrics[name]["recall@10"] == row.recall
    found = take(servers, dead_topic(topic), len(malformed))
    assert {int(letter.headers["source.offset"]) for letter in found} == malformed
    assert len(found) == len(malformed)
    assert all(letter.value == records[int(letter.headers["source.offset"])] for letter in found)


@pytest.mark.kafka
def test_the_faster_client_learns_the_same(kafka: str, topic: str, tmp_path: Path) -> None:
    pytest.importorskip("confluent_kafka", reason="the extra `fast` is not installed")
    records, malformed = records_with_faults(TOTAL)
    put(kafka, topic, records)
    learn(kafka, topic, tmp_path, until_events=100, client="librdkafka")
    report = learn(kafka, topic, tmp_path, until_events=TOTAL, client="librdkafka")
    assert report.state_sha256 == fed(records).learner.state_sha256()
    found = take(kafka, dead_topic(topic), len(malformed))
    assert sorted(int(letter.headers["source.offset"]) for letter in found) == sorted(malformed)


def test_serving_gets_what_was_learned(embedded: str, topic: str, tmp_path: Path) -> None:
    put(embedded, topic, [encode_event(event) for event in some_events(120)])
    report = learn(embedded, topic, tmp_path, until_events=120, checkpoint_events=30, items=("item-0", "never clicked"))
    name = current_snapshot(tmp_path)
    assert name is not None
    snapshot = read_snapshot(tmp_path / SNAPSHOTS / name)
    verify_folder(tmp_path / SNAPSHOTS / name)
    assert snapshot.offsets == report.offsets
    assert snapshot.item_ids[:2] == ("item-0", "never clicked")
    assert snapshot.item_counts[1] == 0
    assert len(sequences(tmp_path / SNAPSHOTS)) == 3
    np.testing.assert_array_equal(snapshot.user_ids, sorted(set(snapshot.user_ids), key=snapshot.user_ids.index))


class SlowToFreeze(MF):
    """A learner whose snapshots take so long as a large one's."""

    def snapshot(self, offsets: Mapping[str, Mapping[str, int]]) -> MFSnapshot:
        """Return the snapshot, later."""
        time.sleep(0.2)
        return super().snapshot(offsets)


def test_checkpoints_that_take_long_are_seldom(embedded: str, topic: str, tmp_path: Path) -> None:
    put(embedded, topic, [encode_event(event) for event in some_events(TOTAL)])
    settings = WorkerSettings(
        embedded, topic, tmp_path, until_events=TOTAL, checkpoint_events=10, checkpoint_seconds=1.0
    )
    report = StreamWorker(settings, SlowToFreeze(n_factors=4, negatives=3)).run()
    assert report.events == TOTAL
    # one after ten events and one at the end; more only where learning the rest takes longer than the pause
    assert 2 <= sequences(tmp_path / SNAPSHOTS)[-1] < TOTAL / 10 / 2
    assert report.offsets == read_snapshot(tmp_path / SNAPSHOTS / str(current_snapshot(tmp_path))).offsets


@pytest.mark.parametrize(
    ("took", "seconds", "pause"),
    [(0.4, 5.0, 0.0), (0.5, 5.0, 0.0), (0.6, 5.0, 6.0), (3.0, 5.0, 30.0), (20.0, 5.0, 60.0), (3.0, 1e6, 0.0)],
)
def test_the_pause_is_ten_times_what_a_long_checkpoint_took(took: float, seconds: float, pause: float) -> None:
    assert pause_after(took, seconds) == pytest.approx(pause)


def test_it_goes_on_where_it_stopped(servers: str, topic: str, tmp_path: Path) -> None:
    records, _ = records_with_faults(TOTAL)
    put(servers, topic, records[:200])
    first = learn(servers, topic, tmp_path, until_events=130)
    assert (first.events, first.offsets) == (130, {topic: {"0": 130}})
    second = learn(servers, topic, tmp_path)
    assert (second.events, second.resumed_from) == (200, 130)
    again = learn(servers, topic, tmp_path)
    assert (again.events, again.resumed_from, again.state_sha256) == (200, 200, second.state_sha256)
    put(servers, topic, records[200:])
    last = learn(servers, topic, tmp_path)
    assert last.state_sha256 == fed(records).learner.state_sha256()


@pytest.mark.parametrize("kind", ["blend"])  # mf: tests/integration/faults
def test_killed_anywhere_it_ends_as_if_never_killed(embedded: str, topic: str, tmp_path: Path, kind: str) -> None:
    records, malformed = records_with_faults(TOTAL)
    put(embedded, topic, records)

    def worker(folder: str) -> StreamWorker:
        settings = settings_of(embedded, topic, tmp_path / folder, TOTAL)
        return StreamWorker(settings, small_learner(kind), texts=some_texts)

    whole = worker("whole").run()
    rng = np.random.default_rng(11)
    instants = [f"decode:{rng.integers(1, 45)}" for _ in range(3)]
    steps = ["flush:2", "rename:1", "commit:1", "rename:2", "written:1", "pointer:2", "published:1", "committed:2"]
    deaths = [*instants[:2], *steps, instants[2]]
    command = [
        sys.executable,
        "-m",
        "tests.stream.dying_workers",
        embedded,
        topic,
        str(tmp_path / "killed"),
        str(TOTAL),
        kind,
    ]
    done = subprocess.run([*command, *deaths, "none:0"], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["9"] * len(deaths) + ["0"], done.stderr
    killed = worker("killed").run()
    for name in ("events", "learned", "duplicates_skipped", "dead_letters", "drift_alarms", "offsets", "state_sha256"):
        assert getattr(killed, name) == getattr(whole, name), name
    for name, row in whole.metrics.items():
        assert {**killed.metrics[name], "us_per_event": 0} == {**row, "us_per_event": 0}
    letters = take(embedded, dead_topic(topic), 2 * len(malformed))
    assert {int(letter.headers["source.offset"]) for letter in letters} == malformed
    # whatever died half-written is cleared
    assert not list((tmp_path / "killed" / "stream").glob("*/.*.tmp"))


def test_newer_texts_take_the_place_of_the_checkpoints(embedded: str, topic: str, tmp_path: Path) -> None:
    put(embedded, topic, [encode_event(event) for event in some_events(60)])
    settings = WorkerSettings(embedded, topic, tmp_path, idle_timeout_s=0.5)

    def run(texts: ItemTexts) -> str:
        return StreamWorker(settings, small_learner("blend"), texts=lambda: texts).run().state_sha256

    first = run(some_texts())
    assert run(some_texts()) == first
    second = run(some_texts(seed=1))
    assert second != first
    assert run(some_texts(seed=1)) == second


def test_texts_that_come_while_it_runs_are_taken_and_stored(
    embedded: str, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No click comes after them: the answers must have them all the same."""
    monkeypatch.setattr("stream.consumer.TEXTS_S", 0.05)
    put(embedded, topic, [encode_event(event) for event in some_events(60)])
    pending = [None, some_texts(), None, some_texts(seed=1)]
    seen: list[int] = []

    def texts() -> ItemTexts | None:
        return pending.pop(0) if pending else None

    def stopping() -> bool:
        name = current_snapshot(tmp_path)
        if name is not None:
            blend = read_snapshot(tmp_path / SNAPSHOTS / name).blend
            assert blend is not None
            if blend.text_columns not in seen:
                seen.append(blend.text_columns)
        return not pending and seen[-1:] == [4]

    settings = WorkerSettings(embedded, topic, tmp_path, idle_timeout_s=30.0, checkpoint_events=20)
    worker = StreamWorker(settings, small_learner("blend"), texts=texts, stopping=stopping)
    report = worker.run()
    assert not pending
    assert seen[-1] == 4
    brief = replace(settings, idle_timeout_s=0.5)
    again = StreamWorker(brief, small_learner("blend"), texts=lambda: some_texts(seed=1)).run()
    assert (again.state_sha256, again.events) == (report.state_sha256, 60)


def test_a_raising_decoder_never_stalls(servers: str, topic: str, tmp_path: Path) -> None:
    def decode(raw: bytes) -> Interaction:
        event = decode_event(raw)
        if int(event.event_id.rpartition("-")[2]) % 10 == 3:
            raise OSError("this decoder gives up now and then")
        return event

    put(servers, topic, [encode_event(event) for event in some_events(100)])
    report = learn(servers, topic, tmp_path, decode=decode, until_events=100)
    assert (report.events, report.dead_letters) == (100, 10)
    assert {letter.headers["error"] for letter in take(servers, dead_topic(topic), 10)} == {"OSError"}


def test_a_stop_stores_a_checkpoint_first(embedded: str, topic: str, tmp_path: Path) -> None:
    put(embedded, topic, [encode_event(event) for event in some_events(100)])
    asked = [0]

    def stopping() -> bool:
        asked[0] += 1
        return asked[0] > 40

    report = learn(embedded, topic, tmp_path, stopping=stopping, idle_timeout_s=None)
    assert 0 < report.events < 100
    checkpoint = CheckpointStore(tmp_path).newest(pytest.fail)
    assert checkpoint is not None
    assert checkpoint.details["events"] == report.events


def test_all_partitions_are_read_and_none_twice(servers: str, topic: str, tmp_path: Path) -> None:
    events = [encode_event(event) for event in some_events(90)]
    for partition in range(3):
        put(servers, topic, events[partition::3], partitions=3, partition=partition)
    first = learn(servers, topic, tmp_path, until_events=50)
    assert sum(first.offsets[topic].values()) == 50
    second = learn(servers, topic, tmp_path)
    assert second.offsets == {topic: {"0": 30, "1": 30, "2": 30}}
    assert (second.events, second.duplicates_skipped) == (90, 0)


def test_a_damaged_checkpoint_costs_only_reading_again(embedded: str, topic: str, tmp_path: Path) -> None:
    records, _ = records_with_faults(TOTAL)
    put(embedded, topic, records)
    whole = learn(embedded, topic, tmp_path, until_events=TOTAL, checkpoint_events=60)
    folder = CheckpointStore(tmp_path).folder
    newest = folder / sequence_name(sequences(folder)[-1])
    raw = (newest / STATE_NAME).read_bytes()
    (newest / STATE_NAME).write_bytes(raw[: len(raw) // 2])
    notices: list[str] = []
    again = learn(embedded, topic, tmp_path, until_events=TOTAL, notices=notices)
    assert any("falling back" in notice for notice in notices)
    assert again.resumed_from < TOTAL
    assert again.state_sha256 == whole.state_sha256


def test_a_new_topic_of_the_same_name_is_refused_or_read_from_its_beginning(tmp_path: Path) -> None:
    events = [encode_event(event) for event in some_events(60)]
    with EmbeddedBroker() as broker:
        put(broker.bootstrap_servers, "clicks", events[:40])
        first = learn(broker.bootstrap_servers, "clicks", tmp_path)
        port = broker.port
    with EmbeddedBroker(port) as broker:  # it forgot everything
        put(broker.bootstrap_servers, "clicks", events[30:])
        with pytest.raises(CheckpointMismatch, match="--on-new-topic continue"):
            learn(broker.bootstrap_servers, "clicks", tmp_path)
        notices: list[str] = []
        second = learn(broker.bootstrap_servers, "clicks", tmp_path, on_new_topic="continue", notices=notices)
        assert any("is a new one" in notice for notice in notices)
    assert (first.events, second.events, second.duplicates_skipped) == (40, 70, 10)
    assert second.offsets == {"clicks": {"0": 30}}
    assert second.state_sha256 == fed(events).learner.state_sha256()


def test_another_topic_into_the_same_store_is_refused(embedded: str, topic: str, tmp_path: Path) -> None:
    put(embedded, topic, [encode_event(event) for event in some_events(10)])
    ensure_topic(embedded, f"{topic}-other", 1)
    learn(embedded, topic, tmp_path)
    with pytest.raises(StoreMismatch, match=f"{topic}-other"):
        learn(embedded, f"{topic}-other", tmp_path)


def test_another_learner_into_the_same_store_is_refused(embedded: str, topic: str, tmp_path: Path) -> None:
    put(embedded, topic, [encode_event(event) for event in some_events(10)])
    learn(embedded, topic, tmp_path)
    settings = WorkerSettings(embedded, topic, tmp_path, idle_timeout_s=0.5)
    with pytest.raises(CheckpointMismatch, match='"seed":4'):
        StreamWorker(settings, small_mf(seed=4)).run()


def test_no_topic_is_named(embedded: str, topic: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=f"unknown topic '{topic}'"):
        learn(embedded, topic, tmp_path, topic_wait_s=0.2)


@pytest.mark.usefixtures("impatient")
def test_no_broker_is_one_line_in_bounded_time(tmp_path: Path) -> None:
    with pytest.raises(BrokerUnavailable, match=r"no Kafka broker answers at 127\.0\.0\.1:1"):
        learn("127.0.0.1:1", "clicks", tmp_path)


@pytest.mark.usefixtures("impatient")
def test_a_broker_that_goes_away_is_noticed_and_the_work_kept(tmp_path: Path) -> None:
    with EmbeddedBroker() as broker:
        put(broker.bootstrap_servers, "clicks", [encode_event(event) for event in some_events(30)])
        started = time.monotonic()

        def stopping() -> bool:
            if worker.state.events == 30 and broker.running:
                broker.stop()
            return time.monotonic() - started > 60

        settings = WorkerSettings(broker.bootstrap_servers, "clicks", tmp_path, idle_timeout_s=0.5)
        worker = StreamWorker(settings, small_mf(), stopping=stopping)
        with pytest.raises(BrokerUnavailable):
            worker.run()
    checkpoint = CheckpointStore(tmp_path).newest(pytest.fail)
    assert checkpoint is not None
    assert checkpoint.details["events"] == 30


def test_the_group_shows_the_offsets(servers: str, topic: str, tmp_path: Path) -> None:
    put(servers, topic, [encode_event(event) for event in some_events(25)])
    learn(servers, topic, tmp_path, until_events=25, group=f"group-{topic}")
    consumer = KafkaConsumer(bootstrap_servers=servers, group_id=f"group-{topic}", enable_auto_commit=False)
    try:
        assert consumer.committed(TopicPartition(topic, 0)) == 25
    finally:
        consumer.close()


@pytest.mark.kafka
@pytest.mark.parametrize("policy", ["fail", "earliest", "latest"])
def test_a_lost_offset_follows_the_policy(kafka: str, topic: str, tmp_path: Path, policy: str) -> None:
    events = [encode_event(event) for event in some_events(50)]
    put(kafka, topic, events[:40])
    learn(kafka, topic, tmp_path, until_events=10)
    with admin_client(kafka) as client:
        client.delete_records({TopicPartition(topic, 0): 30})
    notices: list[str] = []
    if policy == "fail":
        with pytest.raises(OffsetLost, match=r"partition 0 offset 10 .it has 30 to 40.*--on-lost-offset"):
            learn(kafka, topic, tmp_path)
        return
    report = learn(kafka, topic, tmp_path, on_lost_offset=policy, notices=notices)
    assert any("lost offset" in notice for notice in notices)
    assert report.offsets == {topic: {"0": 40}}
    assert report.events == (20 if policy == "earliest" else 10)
    put(kafka, topic, events[40:])
    assert learn(kafka, topic, tmp_path, on_lost_offset=policy).events == report.events + 10


@pytest.mark.parametrize(
    ("option", "value"),
    [("servers", "nowhere"), ("topic", "a b"), ("on_new_topic", "maybe"), ("on_lost_offset", "maybe"), ("keep", 1),
     ("checkpoint_events", 0), ("checkpoint_seconds", 0.0)],
)  # fmt: skip
def test_settings_that_cannot_be(tmp_path: Path, option: str, value: Any) -> None:
    options: dict[str, Any] = {"servers": "h:1", "topic": "t", "store": tmp_path, option: value}
    with pytest.raises((InvalidSetting, UnknownName), match=str(value)):
        WorkerSettings(**options)
