"""Workers that share a topic in one process, stepped one after the other, and what must be left of their events."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.events import Interaction, encode_event
from stream.consumer import StreamWorker
from stream.group_worker import GroupWorker
from stream.kafka_log import partition_of
from stream.settings import LearnReport, WorkerSettings
from stream.source import Log
from stream.state import StreamState
from tests.memory_log import MemoryLog, MemoryMember
from tests.oracles.sharing import histories, rows_by_item
from tests.stream.topics import small_learner, small_mf

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

    def join(self, name: str, **options: Any) -> GroupWorker:
        learner = small_learner(self.kind)
        settings = settings_of(self.store, **{**self.options, **options})
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


def run_one(log: Log, store: Path, notices: list[str] | None = None, **options: Any) -> LearnReport:
    """Let one worker of the group run until its settings end it."""
    said = notices if notices is not None else []
    return GroupWorker(settings_of(store, **options), small_mf(), log=log, notice=said.append).run()


@pytest.fixture
def no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for no disk: hundreds of checkpoints are written here."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()
