"""Records that are gone, logs that were cut, topics that were made again: never in silence, nothing applied twice."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kafka import TopicPartition

from common.errors import BrokerUnavailable, CheckpointMismatch, OffsetLost, StreamError
from common.events import Interaction, encode_event
from stream.checkpoint import CheckpointStore
from stream.connect import Client
from stream.consumer import LearnReport, StreamWorker, WorkerSettings
from stream.kafka_log import KafkaLog
from stream.source import Log
from stream.topics import admin_client, ensure_topic
from tests.brokers import KafkaNode, kafka_home
from tests.memory_log import MemoryLog
from tests.stream.test_state import fed
from tests.stream.topics import put, small_mf, some_events

EVENTS = some_events(60)
RECORDS = [encode_event(event) for event in EVENTS]


def append(log: Log, records: list[bytes], partition: int = 0) -> None:
    log.ensure_topic("clicks")
    sink = log.sink("test")
    for record in records:
        sink.send("clicks", record, partition=partition)
    sink.close()


def learn(
    log: Log,
    store: Path,
    *,
    notices: list[str] | None = None,
    stopping: Callable[[], bool] = lambda: False,
    **options: Any,
) -> LearnReport:
    settings = WorkerSettings("memory:1", "clicks", store, **{"idle_timeout_s": 0.05, **options})
    said = notices if notices is not None else []
    return StreamWorker(settings, small_mf(), log=log, notice=said.append, stopping=stopping).run()


def stored(store: Path) -> dict[str, Any]:
    checkpoint = CheckpointStore(store).newest(pytest.fail)
    assert checkpoint is not None
    return dict(checkpoint.details)


def test_a_log_that_was_cut_is_refused_naming_both_ends(tmp_path: Path) -> None:
    log = MemoryLog()
    append(log, RECORDS[:40])
    learn(log, tmp_path)
    log.truncate("clicks", 0, 30)
    with pytest.raises(OffsetLost, match=r"offset 40 .it has 0 to 30.*the log was cut") as lost:
        learn(log, tmp_path)
    assert lost.value.positions == {0: 40}
    assert stored(tmp_path)["offsets"] == {"clicks": {"0": 40}}


@pytest.mark.parametrize(
    ("policy", "epochs", "events"),
    [("earliest", False, 40 + 50), ("earliest", True, 40 + 20), ("latest", False, 40 + 20), ("latest", True, 40 + 20)],
)
def test_a_log_that_was_cut_is_gone_on_with_and_nothing_applied_twice(
    tmp_path: Path, policy: str, epochs: bool, events: int
) -> None:
    log = MemoryLog(epochs=epochs)
    append(log, RECORDS[:40])
    learn(log, tmp_path)
    log.truncate("clicks", 0, 30)
    notices: list[str] = []
    learn(log, tmp_path, on_lost_offset=policy, notices=notices)
    assert any("lost offset" in notice and f"from the {policy}" in notice for notice in notices)
    append(log, RECORDS[40:])  # the ten that were cut off are not sent again
    report = learn(log, tmp_path, on_lost_offset=policy)
    assert report.offsets == {"clicks": {"0": 50}}
    assert report.events == events
    assert report.state_sha256 == fed(RECORDS).learner.state_sha256()


def test_a_cut_log_is_read_again_only_as_far_as_ids_tell_repeats(tmp_path: Path) -> None:
    log = MemoryLog(epochs=False)
    append(log, RECORDS)
    learn(log, tmp_path, dedup_window=10)
    log.truncate("clicks", 0, 55)
    report = learn(log, tmp_path, dedup_window=10, on_lost_offset="earliest")
    assert (report.events, report.duplicates_skipped) == (65, 5)  # 50 to 54 once more, all of them known
    assert report.state_sha256 == fed(RECORDS).learner.state_sha256()


@pytest.mark.parametrize("policy", ["fail", "earliest", "latest"])
def test_a_log_that_was_cut_and_grew_again_shows_by_the_leaders_epoch(tmp_path: Path, policy: str) -> None:
    """No offset is out of range: the ten that were read and cut off are others now, and ten more lie behind them."""
    log = MemoryLog()
    append(log, RECORDS[:40])
    learn(log, tmp_path)
    assert stored(tmp_path)["epochs"] == {"clicks": {"0": 0}}
    log.truncate("clicks", 0, 30)
    append(log, RECORDS[40:])
    if policy == "fail":
        with pytest.raises(OffsetLost, match=r"offset 40 .it has 0 to 50, written anew from 30.*the log was cut"):
            learn(log, tmp_path)
        assert stored(tmp_path)["offsets"] == {"clicks": {"0": 40}}
        return
    # without memory of ids: the cut alone says what is read again
    report = learn(log, tmp_path, on_lost_offset=policy, dedup_window=0)
    assert report.offsets == {"clicks": {"0": 50}}
    whole = RECORDS if policy == "earliest" else RECORDS[:40]
    assert (report.events, report.duplicates_skipped) == (len(whole), 0)
    assert report.state_sha256 == fed(whole).learner.state_sha256()
    assert learn(log, tmp_path).events == report.events  # the loss is dealt with


def test_a_log_that_is_cut_and_grows_again_while_it_is_read(tmp_path: Path) -> None:
    log = MemoryLog()
    append(log, RECORDS[:40])

    def cut() -> None:
        log.truncate("clicks", 0, 20)
        append(log, RECORDS[40:])

    report = learn(log, tmp_path, on_lost_offset="earliest", stopping=Meddling(31, cut), dedup_window=0)
    assert report.offsets == {"clicks": {"0": 40}}
    # of the batch that was polled before the cut the rest is applied too
    assert report.state_sha256 == fed([*RECORDS[:28], *RECORDS[40:]]).learner.state_sha256()


def test_a_checkpoint_from_before_epochs_were_kept_is_gone_on_from(tmp_path: Path) -> None:
    log = MemoryLog(epochs=False)
    append(log, RECORDS[:40])
    learn(log, tmp_path)
    checkpoint = CheckpointStore(tmp_path).newest(pytest.fail)
    assert checkpoint is not None
    state = fed([])
    state.restore(checkpoint.arrays, {name: value for name, value in checkpoint.details.items() if name != "epochs"})
    assert (state.offsets, state.epochs) == ({"clicks": {0: 40}}, {})


def test_deleted_records_are_told_apart_from_a_cut(tmp_path: Path) -> None:
    log = MemoryLog()
    append(log, RECORDS[:40])
    learn(log, tmp_path, until_events=10)
    log.delete_records("clicks", 0, 30)
    with pytest.raises(OffsetLost) as lost:
        learn(log, tmp_path)
    assert "cut" not in str(lost.value)
    report = learn(log, tmp_path, on_lost_offset="earliest")
    assert report.state_sha256 == fed([*RECORDS[:10], *RECORDS[30:40]]).learner.state_sha256()


class Meddling:
    """Does something to the log once the worker has applied so many records."""

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self._at, self._act, self._asked = at, act, 0

    def __call__(self) -> bool:
        self._asked += 1
        if self._asked == self._at:
            self._act()
        return False


@pytest.mark.parametrize("longer", [False, True])
@pytest.mark.parametrize("policy", ["fail", "continue"])
def test_a_topic_made_again_while_the_worker_runs(tmp_path: Path, policy: str, longer: bool) -> None:
    """The new topic may end before the worker's offset, or beyond it, where no offset is out of range."""
    log = MemoryLog()
    append(log, RECORDS[:30])

    def again() -> None:
        log.delete_topic("clicks")
        append(log, RECORDS if longer else RECORDS[20:45])

    notices: list[str] = []
    options: dict[str, Any] = {"on_new_topic": policy, "checkpoint_events": 7, "notices": notices}
    options["stopping"] = Meddling(26, again)
    if policy == "fail":
        with pytest.raises(CheckpointMismatch, match="--on-new-topic continue"):
            learn(log, tmp_path, **options)
        assert stored(tmp_path)["offsets"]["clicks"]["0"] <= 25  # nothing of the new one is stored
        return
    report = learn(log, tmp_path, **options)
    assert any("is a new one" in notice for notice in notices)
    assert report.offsets == {"clicks": {"0": 60 if longer else 25}}
    whole = RECORDS if longer else RECORDS[:45]
    assert report.state_sha256 == fed(whole).learner.state_sha256()


def test_a_broker_that_comes_back_in_time_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.consumer.LOOK_AGAIN_S", 0.02)
    log = MemoryLog()
    append(log, RECORDS[:40])
    notices: list[str] = []
    asked = [0]

    def stopping() -> bool:
        asked[0] += 1
        if asked[0] == 45:
            log.reachable = False
        if not log.reachable and len(notices) > 2:
            log.reachable = True
            append(log, RECORDS[40:])
        return False

    options: dict[str, Any] = {"until_events": 60, "idle_timeout_s": None, "stopping": stopping}
    report = learn(log, tmp_path, notices=notices, **options)
    assert "waiting for it, up to 120 s" in notices[0]
    assert report.state_sha256 == fed(RECORDS).learner.state_sha256()
    log = MemoryLog()
    append(log, RECORDS[:40])
    with pytest.raises(BrokerUnavailable):
        learn(
            log,
            tmp_path / "x",
            idle_timeout_s=None,
            broker_wait_s=0.05,
            stopping=Meddling(45, lambda: setattr(log, "reachable", False)),
        )


def test_a_broker_out_of_reach_stores_what_was_learned_but_not_before_letters_are_sent(tmp_path: Path) -> None:
    def away(log: MemoryLog) -> Meddling:
        return Meddling(45, lambda: setattr(log, "reachable", False))

    log = MemoryLog()
    append(log, RECORDS[:40])
    with pytest.raises(BrokerUnavailable):
        learn(log, tmp_path / "well", stopping=away(log))
    assert stored(tmp_path / "well")["events"] == 40
    log = MemoryLog()
    append(log, [*RECORDS[:39], b"bad"])
    with pytest.raises(StreamError, match="1 dead letters cannot be sent"):
        learn(log, tmp_path / "with letters", stopping=away(log))
    assert CheckpointStore(tmp_path / "with letters").newest(pytest.fail) is None


# --- on Apache Kafka ------------------------------------------------------------------------------------------------


def learn_kafka(servers: str, topic: str, store: Path, **options: Any) -> LearnReport:
    notices = options.pop("notices", [])
    settings = WorkerSettings(servers, topic, store, **options)
    return StreamWorker(settings, small_mf(), notice=notices.append).run()


@pytest.mark.kafka
@pytest.mark.parametrize("longer", [False, True])
def test_a_topic_made_again_on_kafka(kafka: str, topic: str, tmp_path: Path, longer: bool) -> None:
    put(kafka, topic, RECORDS[:30])
    first = learn_kafka(kafka, topic, tmp_path, until_events=30)
    assert first.offsets == {topic: {"0": 30}}
    with admin_client(kafka) as client:
        client.delete_topics([topic])
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            put(kafka, topic, RECORDS if longer else RECORDS[20:45])
            break
        except (AssertionError, StreamError):  # the old one is still going away
            time.sleep(0.2)
    with pytest.raises(CheckpointMismatch, match="--on-new-topic continue"):
        learn_kafka(kafka, topic, tmp_path, idle_timeout_s=0.5)
    notices: list[str] = []
    total = 30 + (60 if longer else 25)
    report = learn_kafka(kafka, topic, tmp_path, until_events=total, on_new_topic="continue", notices=notices)
    assert any("is a new one" in notice for notice in notices)
    assert report.state_sha256 == fed(RECORDS if longer else RECORDS[:45]).learner.state_sha256()


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.timeout(900)
def test_a_broker_killed_while_events_flow_and_one_restored_from_a_copy(topic: str, tmp_path: Path) -> None:
    """SIGKILL and restart on its data; then the data of before: the stored offset is above the end."""
    node = KafkaNode(kafka_home(), tmp_path / "kafka")
    with node:
        put(node.servers, topic, RECORDS[:30])
        learn_kafka(node.servers, topic, tmp_path / "store", until_events=30)
        node.end()
        shutil.copytree(tmp_path / "kafka" / "node", tmp_path / "copy")
        node.start()
        sink = KafkaLog(node.servers).sink("test")
        killed: list[int] = []

        def stopping() -> bool:
            events = worker.state.events
            if events >= 40 and not killed:
                killed.append(events)
                node.end_now()
                node.launch()
                for record in RECORDS[45:]:  # sent while it is away: buffered, delivered once when it is back
                    sink.send(topic, record, partition=0)
            return False

        for record in RECORDS[30:45]:
            sink.send(topic, record, partition=0)
        sink.flush(30)
        settings = WorkerSettings(node.servers, topic, tmp_path / "store", until_events=60)
        worker = StreamWorker(settings, small_mf(), stopping=stopping)
        report = worker.run()
        sink.flush(30)
        sink.close()
        assert killed
        assert (report.events, report.duplicates_skipped) == (60, 0)
        assert report.state_sha256 == fed(RECORDS).learner.state_sha256()
        node.end()
        shutil.rmtree(tmp_path / "kafka" / "node")
        shutil.copytree(tmp_path / "copy", tmp_path / "kafka" / "node")
        node.start()
        with pytest.raises(OffsetLost, match=r"offset 60 .it has 0 to 30.*the log was cut"):
            learn_kafka(node.servers, topic, tmp_path / "store", idle_timeout_s=60)
        put(node.servers, topic, [*RECORDS[50:], encode_event(Interaction("new", "user-1", "item-1", "click", 61_000))])
        last = learn_kafka(
            node.servers, topic, tmp_path / "store", until_events=101, on_lost_offset="earliest", dedup_window=1000
        )
    assert last.duplicates_skipped == 40
    assert (last.learned - report.learned, last.offsets) == (1, {topic: {"0": 41}})


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.timeout(900)
@pytest.mark.parametrize("client", ["kafka-python", "librdkafka"])
def test_a_log_on_kafka_that_lost_its_end_and_grew_again(topic: str, tmp_path: Path, client: Client) -> None:
    """The partition's files are those of thirty records ago, as after a disk that lied; others were written since."""
    if client == "librdkafka":
        pytest.importorskip("confluent_kafka", reason="the extra `fast` is not installed")
    node = KafkaNode(kafka_home(), tmp_path / "kafka")
    files = tmp_path / "kafka" / "node" / "logs" / f"{topic}-0"
    others = [encode_event(event) for event in some_events(40, seed=5)]
    options: dict[str, Any] = {"client": client, "dedup_window": 0}
    with node:
        put(node.servers, topic, RECORDS[:30])
        node.end()
        shutil.copytree(files, tmp_path / "copy")
        node.start()
        put(node.servers, topic, RECORDS[30:])
        learn_kafka(node.servers, topic, tmp_path / "store", until_events=60, **options)
        node.end()
        shutil.rmtree(files)
        shutil.copytree(tmp_path / "copy", files)
        node.start()
        put(node.servers, topic, others)
        with pytest.raises(OffsetLost, match=r"offset 60 .it has 0 to 70, written anew from 30.*the log was cut"):
            learn_kafka(node.servers, topic, tmp_path / "store", idle_timeout_s=60, **options)
        report = learn_kafka(
            node.servers, topic, tmp_path / "store", until_events=100, on_lost_offset="earliest", **options
        )
    assert report.offsets == {topic: {"0": 70}}
    assert report.state_sha256 == fed([*RECORDS, *others]).learner.state_sha256()


@pytest.mark.kafka
@pytest.mark.parametrize("policy", ["fail", "earliest", "latest"])
def test_a_lost_offset_of_one_partition_leaves_the_others(kafka: str, topic: str, tmp_path: Path, policy: str) -> None:
    put(kafka, topic, RECORDS[:20], partitions=2, partition=0)
    put(kafka, topic, RECORDS[20:40], partition=1)
    learn_kafka(kafka, topic, tmp_path, until_events=25)
    with admin_client(kafka) as client:
        client.delete_records({TopicPartition(topic, 1): 15})
    if policy == "fail":
        with pytest.raises(OffsetLost, match=r"partition 1 offset 5 .it has 15 to 20"):
            learn_kafka(kafka, topic, tmp_path, idle_timeout_s=1)
        return
    report = learn_kafka(kafka, topic, tmp_path, idle_timeout_s=1, on_lost_offset=policy)
    assert report.offsets == {topic: {"0": 20, "1": 20}}
    assert report.events == 25 + (5 if policy == "earliest" else 0)
    ensure_topic(kafka, topic, 2)
