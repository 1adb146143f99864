"""Workers that share a topic, over a log in memory: whoever comes, goes or dies, it is as if one had learned."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.snapshots import read_snapshot
from stream.checkpoint import SNAPSHOTS
from stream.learner.blend import Blend
from stream.partitions import PartitionStore
from stream.snapshot import current_snapshot
from stream.state import ItemTexts
from tests.memory_log import MemoryLog
from tests.oracles.sharing import histories, rows_by_item
from tests.stream.crew import (
    CATALOGUE,
    PARTS,
    TOPIC,
    Crew,
    alone,
    check_each_once,
    check_like_one,
    ones_of_a_kind,
    run_one,
    send,
)
from tests.stream.topics import some_events, some_texts

pytestmark = pytest.mark.usefixtures("no_power_cuts")


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
    reports = [run_one(log, tmp_path, until_events=100 * (number + 1)) for number in range(2)]
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
