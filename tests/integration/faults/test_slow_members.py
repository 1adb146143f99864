"""Members of a group on Apache Kafka that are slow and well, by their disk or their learner: none is taken for dead."""

import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stream.group_worker import GroupWorker
from stream.kafka_log import KafkaLog
from stream.partitions import Claim, Mark
from tests.contracts.test_logs import Noted, poll_until
from tests.integration.faults.sharing_workers import CATALOGUE, settings_of, warm_up
from tests.integration.faults.test_scale_out import PARTS, KeyedFeeder, check, marked_events
from tests.stream.topics import small_learner

SESSION_S = 3.0
STALL_S = 8.0


class SlowToStore(Noted):
    """An owner that needs longer than a session to give something up."""

    def revoked(self, partitions: Collection[int]) -> None:
        time.sleep(STALL_S)
        super().revoked(partitions)


@pytest.mark.slow
@pytest.mark.kafka
def test_one_that_needs_long_to_give_up_a_partition_is_waited_for(kafka: str, topic: str) -> None:
    log = KafkaLog(kafka)
    log.ensure_topic(topic, 4)
    slow, quick = SlowToStore(), Noted()
    one = log.member(topic, "group", slow, session_s=SESSION_S)
    try:
        poll_until(lambda: len(slow.owned) == 4, one)
        other = log.member(topic, "group", quick, session_s=SESSION_S)
        polling = threading.Thread(target=lambda: poll_until(lambda: len(quick.owned) == 2, other))
        polling.start()
        poll_until(lambda: len(quick.owned) == 2, one)
        polling.join(60)  # it is closed only when nobody polls it any more
        other.close()
        poll_until(lambda: len(slow.owned) == 4, one)
    finally:
        one.close()
    assert [what for what, _ in slow.told] == ["assigned", "revoked", "assigned", "revoked"]


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.parametrize("stays", [True, False])
def test_one_that_says_it_is_at_work_stays(
    kafka: str, topic: str, monkeypatch: pytest.MonkeyPatch, stays: bool
) -> None:
    """And one that does not say so is thrown out, or this would show nothing."""
    monkeypatch.setattr("stream.kafka_log.POLL_WITHIN_MS", 4_000)
    log = KafkaLog(kafka)
    log.ensure_topic(topic, 2)
    owner = Noted()
    member = log.member(topic, "group", owner, session_s=SESSION_S)
    try:
        poll_until(lambda: len(owner.owned) == 2, member)
        until = time.monotonic() + STALL_S
        while time.monotonic() < until:
            if stays:
                member.stay()
            time.sleep(0.5)
        if stays:
            member.poll(0.5)
            assert [what for what, _ in owner.told] == ["assigned"]
        else:
            poll_until(lambda: len(owner.told) > 1, member)
            assert owner.told[1][0] == "lost"
    finally:
        member.close()


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.timeout(600)
def test_workers_on_a_slow_disk_keep_their_partitions(
    kafka: str, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write takes longer than a session, one joins meanwhile: no partition is lost, each event applied once."""
    session_s, stall_s = 10.0, 13.0  # nothing shorter is kept by well workers on a busy machine
    events = marked_events(400)
    log = KafkaLog(kafka)
    log.ensure_topic(topic, PARTS)
    KeyedFeeder(kafka, topic, events, per_second=1e6).run()
    write = Claim.write
    slow = threading.Event()

    def slowly(
        claim: Claim, arrays: Mapping[str, np.ndarray], details: Mapping[str, Any], now: int
    ) -> tuple[Mark, int] | None:
        if slow.is_set():
            time.sleep(stall_s)
        return write(claim, arrays, details, now)

    monkeypatch.setattr(Claim, "write", slowly)
    notices: list[str] = []
    failed: list[BaseException] = []
    settings = settings_of(kafka, topic, tmp_path / "shared", session_seconds=session_s)

    def work(name: str) -> None:
        worker = GroupWorker(settings, small_learner("mf"), log=log, items=CATALOGUE, notice=notices.append)
        try:
            with worker.joined():
                started.set()
                while worker.step() and worker._events() < len(events):
                    if worker._events() > len(events) // 4:
                        slow.set()
                worker.checkpoint()
        except BaseException as error:  # raised where it is waited for
            failed.append(error)

    started = threading.Event()
    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    warm_up("mf")  # a compiler holds heartbeats up too
    threads[0].start()
    started.wait(60)
    threads[1].start()
    for thread in threads:
        thread.join(240)
    slow.clear()
    assert not failed
    assert not [notice for notice in notices if "lost" in notice or "newer owner" in notice]
    check(kafka, topic, tmp_path, "mf", events)
