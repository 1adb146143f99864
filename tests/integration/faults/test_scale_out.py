"""Workers that share a topic on Apache Kafka: one is killed, one is stopped for a while, others come and go.

Every event must be applied exactly once, users be as one worker knows them, and items add up. `make test-faults` shows
what each run saw.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pytest
from kafka.structs import MemberState

from common.events import Interaction, encode_event
from stream.consumer import StreamWorker
from stream.group_worker import GroupWorker
from stream.kafka_log import KafkaLog, KafkaMember, partition_of
from stream.partitions import PartitionStore
from stream.settings import WorkerSettings
from stream.state import StreamState
from tests.contracts.test_logs import Noted, poll_until
from tests.integration.faults.sharing_workers import CATALOGUE, settings_of
from tests.oracles.sharing import histories, rows_by_item
from tests.stream.topics import small_learner, some_events

PARTS = 8


def marked_events(count: int) -> list[Interaction]:
    """Return events of all kinds, every third of them a like of an item that no other event has."""
    rng = np.random.default_rng(7)
    found = some_events(count, seed=2)
    for number in range(0, count, 3):
        user = f"user-{rng.integers(60)}"
        found[number] = Interaction(f"event-2-{number}", user, f"only-in-{number}", "click", ts=1000 * number)
    return found


class KeyedFeeder(threading.Thread):
    """Sends events to their users' partitions, so many a second."""

    def __init__(self, servers: str, topic: str, events: Sequence[Interaction], per_second: float) -> None:
        super().__init__(daemon=True)
        self._log, self._topic, self._events, self._rate = KafkaLog(servers), topic, events, per_second
        self.sent = 0

    def run(self) -> None:
        started, sink = time.monotonic(), self._log.sink("feeder")
        for number, event in enumerate(self._events):
            while (ahead := number / self._rate - (time.monotonic() - started)) > 0.005:
                time.sleep(min(ahead, 0.05))
            part = partition_of(event.user_id, PARTS)
            sink.send(self._topic, encode_event(event), partition=part, key=event.user_id.encode())
            self.sent = number + 1
        sink.flush(120)
        sink.close()


class Crew:
    """Processes of workers; none outlives the block."""

    def __init__(self, servers: str, topic: str, store: Path, kind: str) -> None:
        self._command = [
            sys.executable,
            "-m",
            "tests.integration.faults.sharing_workers",
            servers,
            topic,
            str(store),
            kind,
        ]
        self._store = store
        self._started: list[subprocess.Popen[str]] = []
        self.running: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
                self._gone(process)

    def start(self) -> subprocess.Popen[str]:
        """Start one; it has loaded all it needs when this returns, and waits to be told to join."""
        process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        return process

    def join(self, process: subprocess.Popen[str]) -> None:
        """Let it join, and wait until it has partitions."""
        assert process.stdin is not None
        assert process.stdout is not None
        self.running.append(process)
        process.stdin.write("join\n")
        process.stdin.close()
        assert process.stdout.readline().strip()

    def stored(self) -> int:
        """Return how many events are stored."""
        partitions = PartitionStore(self._store)
        newest = [partitions.newest(number, pytest.fail) for number in partitions.numbers()]
        return sum(int(each[1].details["events"]) for each in newest if each is not None)

    def await_stored(self, events: int) -> None:
        """Wait until so many events are stored."""
        deadline = time.monotonic() + 300
        while self.stored() < events and time.monotonic() < deadline:
            time.sleep(0.2)

    def kill(self, process: subprocess.Popen[str]) -> None:
        """SIGKILL."""
        process.kill()
        self._gone(process)
        self.running.remove(process)

    def end(self, events: int) -> list[int]:
        """Tell all to stop once so many events are stored, and wait for it."""
        self.await_stored(events)
        for process in self.running:
            process.terminate()
        return [self._gone(process) for process in self.running]

    def _gone(self, process: subprocess.Popen[str]) -> int:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdin.close()
        with process.stdout:
            return process.wait(60)


def stored(settings: WorkerSettings, kind: str) -> StreamState:
    worker = GroupWorker(settings, small_learner(kind), log=KafkaLog(settings.servers))
    whole = worker._snapshot.publish(0, pytest.fail)
    assert whole is not None
    return whole


def check(servers: str, topic: str, folder: Path, kind: str, events: Sequence[Interaction]) -> StreamState:
    """Compare what the workers stored with a worker that learned alone."""
    whole = stored(settings_of(servers, topic, folder / "shared"), kind)
    alone = StreamWorker(
        WorkerSettings(servers, topic, folder / "alone", until_events=len(events), dedup_window=0, evaluate_every=10),
        small_learner(kind),
        items=CATALOGUE,
    )
    alone.run()
    one, mine, its = alone.state, whole.learner.state_arrays(), alone.state.learner.state_arrays()
    assert whole.offsets == one.offsets
    assert (whole.events, whole.learned, whole.dead_letters) == (len(events), one.learned, 0)
    counts = rows_by_item(mine, "item.counts")
    for event in events:
        if event.item_id.startswith("only-in-"):
            assert int(counts[event.item_id]) == 1, event.event_id
    assert counts == rows_by_item(its, "item.counts")
    assert histories(mine) == histories(its)
    return whole


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "count"), [("mf", 12_000), ("blend", 6_000)])
def test_one_is_killed_and_one_joins(
    kafka: str, topic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, count: int
) -> None:
    events = marked_events(count)
    KafkaLog(kafka).ensure_topic(topic, PARTS)
    with Crew(kafka, topic, tmp_path / "shared", kind) as crew:
        first, second, third = (crew.start() for _ in range(3))
        crew.join(first)
        crew.join(second)
        feeder = KeyedFeeder(kafka, topic, events, per_second=count / 40)
        feeder.start()
        started = time.monotonic()
        crew.await_stored(count // 5)
        crew.kill(first)
        killed_at = crew.stored()
        crew.join(third)
        joined_at = crew.stored()
        feeder.join(240)
        assert feeder.sent == count
        assert crew.end(count) == [0, 0]
    whole = check(kafka, topic, tmp_path, kind, events)
    with capsys.disabled():
        sys.stdout.write(
            f"\n{kind}: {count} events in {PARTS} partitions, one killed at {killed_at}, one joined by {joined_at}:"
            f" each applied once, users as one worker knows them, {whole.learner.n_items} items added up,"
            f" {time.monotonic() - started:.0f} s\n"
        )


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.timeout(600)
def test_one_that_was_stopped_and_comes_back_is_fenced(
    kafka: str, topic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGSTOP for longer than the session: the group takes it for dead, and it wakes up with events not stored."""
    count = 9_000
    events = marked_events(count)
    KafkaLog(kafka).ensure_topic(topic, PARTS)
    with Crew(kafka, topic, tmp_path / "shared", "mf") as crew:
        first, second = crew.start(), crew.start()
        crew.join(first)
        crew.join(second)
        feeder = KeyedFeeder(kafka, topic, events, per_second=count / 45)
        feeder.start()
        crew.await_stored(count // 5)
        os.kill(first.pid, signal.SIGSTOP)
        stopped = time.monotonic()
        time.sleep(16)
        os.kill(first.pid, signal.SIGCONT)
        seconds = time.monotonic() - stopped
        feeder.join(240)
        assert crew.end(count) == [0, 0]
    check(kafka, topic, tmp_path, "mf", events)
    with capsys.disabled():
        sys.stdout.write(f"\na worker stopped for {seconds:.0f} s came back: {count} events applied once each\n")


@pytest.mark.kafka
@pytest.mark.timeout(300)
def test_two_members_share_and_one_leaves(kafka: str, topic: str, tmp_path: Path) -> None:
    """The quick one, in threads: four partitions each, then all for the one that stays."""
    events = marked_events(1500)
    log = KafkaLog(kafka)
    log.ensure_topic(topic, PARTS)
    KeyedFeeder(kafka, topic, events[:700], per_second=1e6).run()
    had: dict[str, list[int]] = {"a": [], "b": []}
    leave = threading.Event()
    failed: list[BaseException] = []

    def work(name: str) -> None:
        settings = settings_of(kafka, topic, tmp_path / "shared")
        worker = GroupWorker(
            settings, small_learner("mf"), log=log, items=CATALOGUE, stopping=lambda: name == "b" and leave.is_set()
        )
        try:
            with worker.joined():
                while worker.step() and worker._events() < len(events):
                    had[name].append(len(worker.shards))
                worker.checkpoint()
        except BaseException as error:  # raised where it is waited for
            failed.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 60
    halves = [PARTS // 2]
    while not (had["a"][-1:] == had["b"][-1:] == halves) and not failed and time.monotonic() < deadline:
        time.sleep(0.05)
    leave.set()
    threads[1].join(60)
    KeyedFeeder(kafka, topic, events[700:], per_second=1e6).run()
    threads[0].join(120)
    assert not failed
    assert PARTS // 2 in had["a"]
    assert had["a"][-1] == PARTS
    check(kafka, topic, tmp_path, "mf", events)


@pytest.mark.slow
@pytest.mark.kafka
def test_a_join_that_the_client_forgot_is_begun_anew(kafka: str, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """kafka-python 3.0.12 as it was found: joining for ever, no heartbeat, no error."""
    monkeypatch.setattr("stream.kafka_log.POLL_WITHIN_MS", 11_000)
    log = KafkaLog(kafka)
    log.ensure_topic(topic, 3)
    owner = Noted()
    member = log.member(topic, "group", owner)
    assert isinstance(member, KafkaMember)
    try:
        poll_until(lambda: len(owner.owned) == 3, member)
        coordinator = member._consumer._coordinator
        coordinator.state, coordinator.rejoining, coordinator.rejoin_needed = MemberState.REBALANCING, True, False
        coordinator._disable_heartbeat()
        poll_until(lambda: len(owner.told) >= 3 and len(owner.owned) == 3, member)
    finally:
        member.close()
    assert [what for what, _ in owner.told[:3]] == ["assigned", "lost", "assigned"]
