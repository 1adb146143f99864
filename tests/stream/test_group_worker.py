"""Workers that share a topic, over a log in memory: whoever comes, goes or dies, it is as if one had learned."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import (
    BrokerUnavailable,
    CheckpointMismatch,
    InvalidSetting,
    OffsetLost,
    StoreMismatch,
    TooManyBadRecords,
)
from common.events import Interaction, encode_event
from common.snapshots import read_snapshot
from stream.checkpoint import SNAPSHOTS
from stream.consumer import StreamWorker
from stream.group_worker import GroupWorker
from stream.kafka_log import partition_of
from stream.learner.blend import Blend
from stream.learner.pointwise import PointwiseMF
from stream.partitions import PartitionStore
from stream.settings import LearnReport, WorkerSettings
from stream.snapshot import current_snapshot
from stream.state import ItemTexts, StreamState
from tests.memory_log import MemoryLog, MemoryMember
from tests.oracles.sharing import histories, rows_by_item
from tests.stream.topics import MALFORMED, small_learner, small_mf, some_events, some_texts

TOPIC, PARTS = "clicks", 8
CATALOGUE = tuple(f"item-{number}" for number in range(40))


def ones_of_a_kind(count: int, seed: int = 0) -> list[Interaction]:
    """Return likes of which each has an item of its own: an item's count is how often the event was applied."""
    rng = np.random.default_rng(seed)
    return [
        Interaction(f"e{n}", f"user-{rng.integers(15)}", f"only-in-e{n}", "click", ts=1000 * n) for n in range(count)
    ]


def send(log: MemoryLog, events: Sequence[Interaction]) -> None:
    log.ensure_topic(TOPIC, PARTS)
    sink = log.sink("test")
    for event in events:
        sink.send(TOPIC, encode_event(event), partition=partition_of(event.user_id, PARTS))


def settings_of(store: Path, **options: Any) -> WorkerSettings:
    few: dict[str, Any] = {"checkpoint_events": 40, "checkpoint_seconds": 1e6, "dedup_window": 0, "evaluate_every": 5}
    return WorkerSettings("127.0.0.1:9092", TOPIC, store, **{**few, **options})


class Crew:
    """Workers of one group, stepped one after the other in one thread."""

    def __init__(self, log: MemoryLog, store: Path, kind: str = "mf", **options: Any) -> None:
        self.log, self.store, self.kind = log, store, kind
        self.more = {name: options.pop(name) for name in ("items", "texts", "decode") if name in options}
        self.options = options
        self.notices: list[str] = []
        self.workers: dict[str, GroupWorker] = {}
        self._joined: dict[str, Any] = {}

    def join(self, name: str) -> GroupWorker:
        learner = small_learner(self.kind)
        settings = settings_of(self.store, **self.options)
        worker = GroupWorker(settings, learner, log=self.log, notice=self.notices.append, **self.more)
        self._joined[name] = worker.joined()
        self._joined[name].__enter__()
        self.workers[name] = worker
        return worker

    def member(self, name: str) -> MemoryMember:
        found = self.workers[name]._source
        assert isinstance(found, MemoryMember)
        return found

    def kill(self, name: str) -> GroupWorker:
        """As SIGKILL would: nothing more is written, and the group hears of it in time."""
        self.member(name).kill()
        return self.workers.pop(name)

    def leave(self, name: str) -> None:
        """As SIGTERM would."""
        self.workers[name].checkpoint()
        self._joined[name].__exit__(None, None, None)
        del self.workers[name]

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            for worker in list(self.workers.values()):
                assert worker.step()

    def finish(self) -> StreamState:
        """Let them read all and leave; return what is stored."""
        ends = [part.end for part in self.log.topics[TOPIC].partitions]
        for _ in range(400):
            self.step()
            if sum(sum(worker._offsets().values()) for worker in self.workers.values()) == sum(ends):
                break
        for name in list(self.workers):
            self.leave(name)
        return self.stored()

    def stored(self) -> StreamState:
        fresh = GroupWorker(settings_of(self.store, **self.options), small_learner(self.kind), log=self.log)
        whole = fresh._snapshot.publish(0, self.notices.append)
        assert whole is not None
        return whole


def alone(log: MemoryLog, store: Path, kind: str = "mf", **more: Any) -> StreamState:
    worker = StreamWorker(settings_of(store, idle_timeout_s=0.05), small_learner(kind), log=log, **more)
    worker.run()
    return worker.state


def check_like_one(whole: StreamState, one: StreamState) -> None:
    """Users, counts, offsets and tests are those of a worker that learned alone."""
    mine, its = whole.learner.state_arrays(), one.learner.state_arrays()
    assert histories(mine) == histories(its)
    assert rows_by_item(mine, "item.counts") == rows_by_item(its, "item.counts")
    assert whole.offsets == one.offsets
    for name in ("events", "learned", "dead_letters", "topic_ids"):
        assert getattr(whole, name) == getattr(one, name), name
    assert whole.learner.events == one.learner.events


def check_each_once(whole: StreamState, events: Sequence[Interaction]) -> None:
    counts = rows_by_item(whole.learner.state_arrays(), "item.counts")
    assert {event.item_id: int(counts[event.item_id]) for event in events} == {event.item_id: 1 for event in events}
    assert sum(counts.values()) == len(events)


@pytest.fixture(autouse=True)
def no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for no disk: hundreds of checkpoints are written here."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.mark.parametrize("kind", ["mf", "blend"])
def test_one_member_learns_what_a_lone_worker_does(log: MemoryLog, tmp_path: Path, kind: str) -> None:
    send(log, some_events(400))
    more: dict[str, Any] = {"items": CATALOGUE, "texts": some_texts}
    crew = Crew(log, tmp_path / "shared", kind, **more)
    crew.join("a")
    check_like_one(crew.finish(), alone(log, tmp_path / "alone", kind, **more))


@pytest.mark.parametrize("kind", ["mf", "blend"])
def test_one_is_killed_and_one_joins(log: MemoryLog, tmp_path: Path, kind: str) -> None:
    events = [*some_events(300), *ones_of_a_kind(300)]
    send(log, events[:200])
    crew = Crew(log, tmp_path / "shared", kind, items=CATALOGUE)
    crew.join("a")
    crew.join("b")
    crew.step(3)
    assert all(len(worker.shards) == PARTS // 2 for worker in crew.workers.values())
    killed = crew.kill("a")
    assert any(shard.changed for shard in killed.shards.values())  # it had learned what it had not stored
    send(log, events[200:400])
    crew.step(2)
    crew.join("c")
    crew.step(2)
    send(log, events[400:])
    whole = crew.finish()
    check_like_one(whole, alone(log, tmp_path / "alone", kind, items=CATALOGUE))
    counts = rows_by_item(whole.learner.state_arrays(), "item.counts")
    assert {item: int(count) for item, count in counts.items() if item.startswith("only")} == {
        event.item_id: 1 for event in events[300:]
    }


def test_coming_and_going_all_the_time(log: MemoryLog, tmp_path: Path) -> None:
    events = ones_of_a_kind(500)
    crew = Crew(log, tmp_path / "shared")
    send(log, events[:1])
    crew.join("w0")
    rng = np.random.default_rng(4)
    sent = 1
    for turn in range(1, 40):
        send(log, events[sent : sent + 12])
        sent = min(len(events), sent + 12)
        crew.step(int(rng.integers(1, 3)))
        if len(crew.workers) < 3 and rng.random() < 0.6:
            crew.join(f"w{turn}")
        elif len(crew.workers) > 1:
            name = str(rng.choice(sorted(crew.workers)))
            (crew.leave if rng.random() < 0.5 else crew.kill)(name)
    send(log, events[sent:])
    whole = crew.finish()
    check_each_once(whole, events)
    check_like_one(whole, alone(log, tmp_path / "alone"))
    assert not crew.notices


def test_revoked_is_stored_before_the_next_owner_has_it(log: MemoryLog, tmp_path: Path) -> None:
    send(log, ones_of_a_kind(60))
    crew = Crew(log, tmp_path, checkpoint_events=10_000)
    first = crew.join("a")
    crew.step(8)
    assert PartitionStore(tmp_path).mark(PARTS - 1) is None  # nothing was due
    applied = {number: shard.state.events for number, shard in first.shards.items()}
    crew.join("b")
    crew.step(3)
    second = crew.workers["b"]
    assert len(second.shards) == PARTS // 2
    assert {number: shard.state.events for number, shard in second.shards.items()}.items() <= applied.items()
    assert not any(shard.changed for shard in second.shards.values() if applied[shard.partition])


def test_lost_is_dropped_and_nothing_is_written(log: MemoryLog, tmp_path: Path) -> None:
    events = ones_of_a_kind(120)
    send(log, events[:60])
    crew = Crew(log, tmp_path, checkpoint_events=10_000)
    worker = crew.join("a")
    crew.step(8)
    worker.checkpoint()
    store = PartitionStore(tmp_path)
    marks = {number: store.mark(number) for number in store.numbers()}
    send(log, events[60:])
    crew.step(8)
    learned = sum(shard.state.events for shard in worker.shards.values())
    assert learned > 60
    crew.member("a").evict()
    writing = {number: shard.claim for number, shard in worker.shards.items()}
    worker._source.poll(0.0)
    assert not worker.shards
    assert {number: store.mark(number) for number in store.numbers()} == marks
    assert "are lost" in crew.notices[0]
    crew.step(8)  # it joins again, and reads the same records from the checkpoints
    assert all(worker.shards[number].claim.number > claim.number for number, claim in writing.items())
    check_each_once(crew.finish(), events)


def test_a_zombie_is_fenced(log: MemoryLog, tmp_path: Path) -> None:
    """It was taken for dead, does not know it yet, and stores; what it says must not count."""
    events = ones_of_a_kind(200)
    send(log, events[:100])
    crew = Crew(log, tmp_path, checkpoint_events=10_000)
    zombie = crew.join("zombie")
    crew.step(4)
    zombie.checkpoint()
    send(log, events[100:150])
    crew.step(4)
    crew.member("zombie").evict()
    del crew.workers["zombie"]
    crew.join("heir")
    crew.step(8)
    crew.workers["heir"].checkpoint()
    store = PartitionStore(tmp_path)
    marks = {number: store.mark(number) for number in store.numbers()}
    zombie.checkpoint()
    assert {number: store.mark(number) for number in store.numbers()} == marks
    assert not zombie.shards
    assert sum("has a newer owner" in notice for notice in crew.notices) == PARTS
    crew.workers["zombie"] = zombie
    send(log, events[150:])
    check_each_once(crew.finish(), events)


def test_what_a_partition_does_not_know_yet_is_at_most_two_intervals_old(
    log: MemoryLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound of docs/operations.md: one interval until another has stored it, one until this one looks."""
    monkeypatch.setattr("stream.group_worker._SHARE_AT_MOST", 1.0)
    send(log, some_events(2000))
    crew, interval = Crew(log, tmp_path, checkpoint_events=10**9), 3
    for name in "abc":
        crew.join(name)
    crew.step(2)
    likes: list[dict[int, int]] = []  # of each partition, after each step
    worst = 0
    for turn in range(30):
        crew.step()
        shards = [shard for worker in crew.workers.values() for shard in worker.shards.values()]
        likes.append({shard.partition: shard.state.progressive.liked for shard in shards})
        for number, worker in enumerate(crew.workers.values()):
            if turn % interval == number:  # each at another time
                worker.checkpoint()
        if turn < 2 * interval:
            continue
        for shard in shards:
            known = int(shard.state.learner.item_counts.sum())
            recent = {part: likes[-1][part] - likes[-1 - 2 * interval][part] for part in likes[-1]}
            missing = sum(likes[-1].values()) - known
            worst = max(worst, missing)
            assert 0 <= missing <= sum(recent.values()) - recent[shard.partition]
    assert worst > 0
    for _ in range(2):
        for worker in crew.workers.values():
            worker.checkpoint()
    total = sum(likes[-1].values())
    assert {int(shard.state.learner.item_counts.sum()) for shard in shards} == {total}
    totals = [worker.shared.total["ours"] for worker in crew.workers.values()]
    for name in ("item.history", "item.factors", "item.bias"):
        mine, *others = [rows_by_item(each, name) for each in totals]
        for other in others:
            assert all(np.allclose(row, other[item], atol=1e-5) for item, row in mine.items())


@pytest.mark.parametrize("kind", ["mf", "blend"])
def test_what_is_served_has_the_users_of_all(log: MemoryLog, tmp_path: Path, kind: str) -> None:
    send(log, some_events(400))
    crew = Crew(log, tmp_path, kind, items=CATALOGUE, texts=some_texts)
    crew.join("a")
    crew.join("b")
    whole = crew.finish()
    name = current_snapshot(tmp_path)
    assert name is not None
    snapshot = read_snapshot(tmp_path / SNAPSHOTS / name)
    assert set(snapshot.user_ids) == {event.user_id for event in some_events(400)} & set(whole.learner.user_ids)
    assert snapshot.offsets == whole.json_offsets
    assert snapshot.events == whole.learner.events
    starts, items = snapshot.history_starts, snapshot.history_items
    for row, user in enumerate(snapshot.user_ids):
        liked = [snapshot.item_ids[item] for item in items[starts[row] : starts[row + 1]]]
        assert liked == histories(whole.learner.state_arrays())[user][0]
    if kind == "mf":
        user = snapshot.user_ids[0]
        served = snapshot.scores(whole.learner.history_rows(user))
        assert np.allclose(served, whole.learner.scores(user), atol=1e-5)


def test_the_reports_of_all_are_one(log: MemoryLog, tmp_path: Path) -> None:
    send(log, some_events(200))
    reports: list[LearnReport] = []
    for number in range(2):
        settings = settings_of(tmp_path, until_events=100 * (number + 1))
        reports.append(GroupWorker(settings, small_mf(), log=log).run())
    assert (reports[0].events, reports[0].resumed_from) == (100, 0)
    assert (reports[1].events, reports[1].resumed_from) == (200, 100)
    one = alone(log, tmp_path / "alone")
    assert reports[1].metrics["popularity"]["evaluated"] > 0
    assert reports[1].learned == one.learned
    assert sum(reports[1].offsets[TOPIC].values()) == 200


def test_newer_texts_reach_partitions_that_are_taken_over_later(log: MemoryLog, tmp_path: Path) -> None:
    told: list[ItemTexts | None] = [some_texts()]
    send(log, some_events(200))
    crew = Crew(log, tmp_path, "blend", texts=lambda: told[0])
    first = crew.join("a")
    crew.step(4)
    told[0] = some_texts(seed=1)
    first._describe()
    marks = {number: shard.state.learner.described_by for number, shard in first.shards.items()}
    assert len(set(marks.values())) == 1
    crew.join("b")
    crew.step(4)
    second = crew.workers["b"]
    assert second.shards
    for shard in second.shards.values():
        assert isinstance(shard.state.learner, Blend)
        rows = shard.state.learner.state_arrays()["item.content.rows"]
        other = next(iter(first.shards.values())).state.learner.state_arrays()["item.content.rows"]
        assert np.array_equal(rows[:40], other[:40])
    one = alone(log, tmp_path / "alone", "blend")
    assert crew.finish().learner.events == one.learner.events


# --- what must not happen in silence ----------------------------------------------------------------------------------


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
    worker = GroupWorker(settings_of(tmp_path, bad_share=0.2, bad_window=20, idle_timeout_s=0.05), small_mf(), log=log)
    worker.run()
    before = PartitionStore(tmp_path).newest(3, pytest.fail)
    assert before is not None
    sink = log.sink("test")
    for _ in range(30):
        sink.send(TOPIC, b"{", partition=3)
    with pytest.raises(TooManyBadRecords, match="the last checkpoint of partition 3"):
        GroupWorker(settings_of(tmp_path, bad_share=0.2, bad_window=20), small_mf(), log=log).run()
    after = PartitionStore(tmp_path).newest(3, pytest.fail)
    assert after is not None
    assert after[1].details["offsets"] == before[1].details["offsets"]
    assert f"{TOPIC}.dead" not in log.topics


def test_a_record_that_is_gone_follows_the_policy(log: MemoryLog, tmp_path: Path) -> None:
    send(log, some_events(200))
    GroupWorker(settings_of(tmp_path, until_events=80), small_mf(), log=log).run()
    log.delete_records(TOPIC, 3, log.topics[TOPIC].partitions[3].end - 2)
    with pytest.raises(OffsetLost, match="partition 3 offset"):
        GroupWorker(settings_of(tmp_path, idle_timeout_s=0.05), small_mf(), log=log).run()
    notices: list[str] = []
    settings = settings_of(tmp_path, idle_timeout_s=0.05, on_lost_offset="earliest")
    report = GroupWorker(settings, small_mf(), log=log, notice=notices.append).run()
    assert any("going on from the earliest" in notice for notice in notices)
    assert report.offsets[TOPIC] == {str(n): part.end for n, part in enumerate(log.topics[TOPIC].partitions)}
    assert 80 < report.events < 200


def test_a_topic_that_was_made_anew_follows_the_policy(log: MemoryLog, tmp_path: Path) -> None:
    send(log, some_events(80))
    GroupWorker(settings_of(tmp_path, idle_timeout_s=0.05), small_mf(), log=log).run()
    log.delete_topic(TOPIC)
    send(log, ones_of_a_kind(40))
    with pytest.raises(CheckpointMismatch, match="--on-new-topic continue"):
        GroupWorker(settings_of(tmp_path, idle_timeout_s=0.05), small_mf(), log=log).run()
    settings = settings_of(tmp_path, idle_timeout_s=0.05, on_new_topic="continue")
    report = GroupWorker(settings, small_mf(), log=log).run()
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
        GroupWorker(settings_of(tmp_path / "alone"), small_mf(), log=log).run()
    GroupWorker(settings_of(tmp_path / "shared", idle_timeout_s=0.05), small_mf(), log=log).run()
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
        GroupWorker(settings_of(tmp_path), small_mf(), log=log).run()


def test_a_learner_that_cannot_be_shared_is_refused_before_anything_is_read(log: MemoryLog, tmp_path: Path) -> None:
    make: Callable[[], PointwiseMF] = PointwiseMF
    with pytest.raises(InvalidSetting, match="can be shared"):
        GroupWorker(settings_of(tmp_path), make(), log=log)
