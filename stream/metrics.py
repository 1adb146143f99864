"""The worker's figures for Prometheus, at `http://127.0.0.1:PORT/metrics`; how each is read: docs/operations.md."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from common.errors import PortInUse
from stream.state import Outcome

HOST = "127.0.0.1"
_APPLY_BUCKETS = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 1e-1)
_CHECKPOINT_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class WorkerMetrics:
    """A meter (`stream.meter.Meter`) that keeps the figures in a registry of its own.

    Parameters
    ----------
    now
        Seconds since the epoch.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._alarms = 0
        self._stored_at = now()
        self._newest_ts: int | None = None
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"namespace": "anabranch", "subsystem": "stream", "registry": self.registry}
        self._events = Counter("records", "Records applied, by what became of them.", ["outcome"], **own)
        self._dead = Counter("dead_letters", "Records that could not be used, by error.", ["error"], **own)
        self._apply = Histogram("apply_seconds", "Time to test and learn a record.", buckets=_APPLY_BUCKETS, **own)
        self._lag = Gauge(
            "lag_offsets", "Offsets between what is applied and the partition's end.", ["partition"], **own
        )
        self._event_lag = Gauge("event_time_lag_seconds", "Now less the time of the newest event applied.", **own)
        self._event_lag.set_function(self._behind)
        self._checkpoint = Histogram("checkpoint_seconds", "Time to store all.", buckets=_CHECKPOINT_BUCKETS, **own)
        self._bytes = Gauge("checkpoint_bytes", "State of the last checkpoint.", **own)
        age = Gauge("checkpoint_age_seconds", "Since the last checkpoint, or since the start.", **own)
        age.set_function(lambda: max(0.0, self._now() - self._stored_at))
        self._drift = Counter("drift_alarms", "Drift alarms, those of earlier runs into the store included.", **own)
        self._assignments = Counter("rebalances", "Times that partitions were assigned.", **own)
        self._partitions = Gauge("partitions", "Partitions that are read.", **own)

    def _behind(self) -> float:
        return 0.0 if self._newest_ts is None else max(0.0, self._now() - self._newest_ts / 1000)

    def applied(self, outcome: Outcome, seconds: float) -> None:
        """Take note of one applied record."""
        self._events.labels(outcome.kind).inc()
        self._apply.observe(seconds)
        if outcome.kind == "dead":
            self._dead.labels(outcome.error).inc()
        if outcome.ts is not None and (self._newest_ts is None or outcome.ts > self._newest_ts):
            self._newest_ts = outcome.ts

    def polled(self, behind: Mapping[int, int]) -> None:
        """Take note of how far behind it is."""
        for partition, offsets in behind.items():
            self._lag.labels(str(partition)).set(offsets)

    def alarms(self, count: int) -> None:
        """Take note of the drift alarms so far; those of earlier runs count too."""
        if count > self._alarms:
            self._drift.inc(count - self._alarms)
        self._alarms = count

    def checkpointed(self, seconds: float, size: int) -> None:
        """Take note of a checkpoint."""
        self._stored_at = self._now()
        self._checkpoint.observe(seconds)
        self._bytes.set(size)

    def assigned(self, partitions: int) -> None:
        """Take note of an assignment."""
        self._assignments.inc()
        self._partitions.set(partitions)

    @contextmanager
    def served(self, port: int, host: str = HOST) -> Iterator[int]:
        """Answer at the port within the block; 0 takes a free one, which is given.

        Raises
        ------
        PortInUse
            When the port is taken.
        """
        try:
            server, thread = start_http_server(port, addr=host, registry=self.registry)
        except OSError as error:
            raise PortInUse(f"port {port} of {host} is taken", mend="choose another with --metrics-port") from error
        try:
            yield int(server.server_port)
        finally:
            server.shutdown()
            server.server_close()
            thread.join(5)
