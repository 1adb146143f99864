"""The figures for Prometheus say what the worker did."""

import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from common.errors import PortInUse
from common.events import encode_event
from stream.consumer import StreamWorker, WorkerSettings
from stream.metrics import WorkerMetrics
from stream.state import Outcome
from tests.memory_log import MemoryLog
from tests.stream.topics import small_mf, some_events

PREFIX = "anabranch_stream_"


def scraped(metrics: WorkerMetrics) -> dict[str, float]:
    """Return each sample as a scrape over HTTP has it: name and labels to value."""
    with metrics.served(0) as port, urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        sample.name.removeprefix(PREFIX) + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_run_is_in_the_figures(tmp_path: Path) -> None:
    events = [encode_event(event) for event in some_events(100)]
    log = MemoryLog()
    log.ensure_topic("clicks", 2)
    sink = log.sink("test")
    for value in [*events[:60], b"bad", b"bad", events[0], *events[60:90]]:
        sink.send("clicks", value, partition=0)
    for value in events[90:]:
        sink.send("clicks", value, partition=1)
    now = [90.0]
    metrics = WorkerMetrics(now=lambda: now[0])
    settings = WorkerSettings(
        "memory:1", "clicks", tmp_path, idle_timeout_s=0.05, checkpoint_events=50, checkpoint_seconds=3600.0
    )
    report = StreamWorker(settings, small_mf(), log=log, meter=metrics).run()
    now[0] = 100.0
    found = scraped(metrics)
    assert found["records_total learned"] == report.learned
    assert found["records_total dead"] == found["dead_letters_total MalformedEvent"] == 2
    assert found["records_total duplicate"] == report.duplicates_skipped == 1
    assert sum(value for name, value in found.items() if name.startswith("records_total")) == report.events == 103
    assert (found["lag_offsets 0"], found["lag_offsets 1"]) == (0, 0)
    assert found["event_time_lag_seconds"] == pytest.approx(100 - 99)  # some_events are a second apart
    assert found["apply_seconds_count"] == report.events
    assert found["checkpoint_seconds_count"] == 3
    assert found["checkpoint_bytes"] > 1000
    assert found["checkpoint_age_seconds"] == 10
    assert found["rebalances_total"] == 1
    assert found["partitions"] == 2
    assert found["drift_alarms_total"] == report.drift_alarms


def test_lag_is_what_is_ahead(tmp_path: Path) -> None:
    log = MemoryLog(batch=30)
    log.ensure_topic("clicks")
    sink = log.sink("test")
    for event in some_events(100):
        sink.send("clicks", encode_event(event), partition=0)
    metrics = WorkerMetrics()
    settings = WorkerSettings("memory:1", "clicks", tmp_path, until_events=60)
    StreamWorker(settings, small_mf(), log=log, meter=metrics).run()
    assert scraped(metrics)["lag_offsets 0"] == 40


def test_alarms_are_counted_once() -> None:
    metrics = WorkerMetrics()
    for count in (0, 1, 1, 3):
        metrics.alarms(count)
    assert scraped(metrics)["drift_alarms_total"] == 3


def test_nothing_yet_is_no_lag() -> None:
    metrics = WorkerMetrics()
    metrics.applied(Outcome("dead", "MalformedEvent", "no"), 0.001)
    assert scraped(metrics)["event_time_lag_seconds"] == 0


def test_a_taken_port_is_named() -> None:
    metrics = WorkerMetrics()
    with metrics.served(0) as port, pytest.raises(PortInUse, match=str(port)), WorkerMetrics().served(port):
        pass
