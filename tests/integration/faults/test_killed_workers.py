"""SIGKILL at every step of a checkpoint and at random instants, while events flow: as if nothing had happened.

Each run prints what it saw; `make test-faults` shows it.
"""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stream.consumer import LearnReport, StreamWorker
from stream.kafka_log import KafkaLog
from stream.replay import read_letters, replay_letters
from tests.integration.faults.flow import Feeder, Flow, faulty_flow
from tests.stream.dying_workers import PLACES, settings_of
from tests.stream.topics import put, small_learner, some_texts

SAME = ("events", "learned", "duplicates_skipped", "dead_letters", "drift_alarms", "offsets", "state_sha256")


def killed(servers: str, topic: str, store: Path, total: int, kind: str, deaths: list[str], within_s: float) -> int:
    """Run workers that die, then one that finishes; return how many were killed."""
    command = [sys.executable, "-m", "tests.stream.dying_workers", servers, topic, str(store), str(total), kind]
    done = subprocess.run([*command, *deaths, "none:0"], capture_output=True, text=True, timeout=within_s, check=False)
    ended = done.stdout.split()
    assert len(ended) == len(deaths) + 1, done.stderr
    assert set(ended) <= {"9", "0"}, done.stderr
    assert ended[-1] == "0"
    return ended.count("9")


def uninterrupted(servers: str, topic: str, store: Path, total: int, kind: str) -> LearnReport:
    settings = settings_of(servers, topic, store, total)
    return StreamWorker(settings, small_learner(kind), texts=some_texts).run()


def check(servers: str, topic: str, folder: Path, flow: Flow, kind: str) -> LearnReport:
    """Compare the killed run with one that nothing happened to; then mend, replay twice, and learn on."""
    total = len(flow.records)
    whole = uninterrupted(servers, topic, folder / "whole", total, kind)
    after = uninterrupted(servers, topic, folder / "killed", total, kind)
    for name in SAME:
        assert getattr(after, name) == getattr(whole, name), name
    for name, row in whole.metrics.items():
        assert after.metrics[name]["recall@10"] == row["recall@10"]
    assert whole.duplicates_skipped == flow.duplicates
    assert whole.dead_letters == len(flow.mended)
    log = KafkaLog(servers)
    letters = read_letters(log, topic)
    assert sorted(letter.offset for letter in letters) == sorted(flow.mended)
    assert all(letter.value == flow.records[letter.offset] for letter in letters)
    report = replay_letters(log, topic, mended={(0, offset): value for offset, value in flow.mended.items()})
    assert report.replayed == len(flow.mended)
    assert replay_letters(log, topic).replayed == 0
    mended = uninterrupted(servers, topic, folder / "killed", total + len(flow.mended), kind)
    assert (mended.dead_letters, mended.duplicates_skipped) == (len(flow.mended), flow.duplicates)
    assert mended.events == total + len(flow.mended)
    return mended


def test_killed_at_every_step_and_at_some_instants(embedded: str, topic: str, tmp_path: Path) -> None:
    """The small one: some hundred events that are there already."""
    flow = faulty_flow(300, seed=5)
    put(embedded, topic, flow.records)
    deaths = [f"{place}:{2 if place == 'rename' else 1}" for place in PLACES]
    assert killed(embedded, topic, tmp_path / "killed", 300, "mf", [*deaths, "time:0.1"], 200) >= len(PLACES)
    check(embedded, topic, tmp_path, flow, "mf")


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("kind", "count", "instants"), [("mf", 100_000, 50), ("blend", 20_000, 12)])
def test_killed_while_events_flow(
    kafka: str, topic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, count: int, instants: int
) -> None:
    flow = faulty_flow(count, seed=11)
    rng = np.random.default_rng(13)
    steps = [f"{place}:{rng.integers(1, 4)}" for place in PLACES]
    moments = [f"time:{seconds:.3f}" for seconds in rng.uniform(0.15, 1.2, instants)]
    deaths = [str(death) for death in rng.permutation([*steps, *moments])]
    started = time.monotonic()
    with Feeder(kafka, topic, flow.records, per_second=count / 45):
        number = killed(kafka, topic, tmp_path / "killed", count, kind, deaths, 1200)
    seconds = time.monotonic() - started
    assert number >= len(PLACES) + instants // 2
    mended = check(kafka, topic, tmp_path, flow, kind)
    with capsys.disabled():
        sys.stdout.write(
            f"\n{kind}: {count} records ({flow.duplicates} twice, {len(flow.mended)} corrupt), {number} of"
            f" {len(deaths)} workers killed in {seconds:.0f} s, state as if none had been; 0 lost, 0 applied twice;"
            f" {mended.events - count} mended ones replayed, each once\n"
        )
