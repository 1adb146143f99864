"""The service's figures for Prometheus; how each is read: docs/operations.md.

Where several processes answer, the client library keeps counters and histograms in files of a folder, and whichever
process is asked adds all of them up. Gauges are then those of the process that was asked, which they name.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.clock import Clock
from common.errors import NoModel
from common.recent import RecentEvents
from server.serving.bundle import BundleSource

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 30)
_METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"})
NO_ROUTE = "none"


Read = Callable[[], float]


class _Gauges(Collector):
    """Figures that are read when they are asked for.

    Parameters
    ----------
    figures
        Name, text, and how it is read.
    process
        Names the process, where there are several.
    """

    def __init__(self, figures: tuple[tuple[str, str, Read], ...], process: str | None) -> None:
        self._figures, self._process = figures, process

    def collect(self) -> Iterator[Metric]:
        """Read all."""
        named = [] if self._process is None else [self._process]
        for name, text, read in self._figures:
            family = GaugeMetricFamily(f"anabranch_serve_{name}", text, labels=["process"][: len(named)])
            family.add_metric(named, read())
            yield family


class ServiceMetrics:
    """Counts what is asked, and tells what is served, in a registry of its own.

    Parameters
    ----------
    source
        What is served.
    live
        What happens since the snapshot, where the service follows a topic.
    clock
        For ages.
    process
        Names this process where several answer, which share their counts; None for one alone.
    """

    def __init__(
        self, source: BundleSource, live: RecentEvents | None, clock: Clock, process: str | None = None
    ) -> None:
        self._source, self._clock = source, clock
        self._registry = CollectorRegistry()
        own: dict[str, Any] = {"namespace": "anabranch", "subsystem": "serve", "registry": self._registry}
        self._requests = Counter("requests", "Answers, by route and status.", ["method", "route", "status"], **own)
        self._seconds = Histogram("seconds", "Time to the first byte of an answer.", ["route"], buckets=_BUCKETS, **own)
        self._kinds: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        users = Counter("slates", "Slates, by whether the user is known.", ["known_user"], **own)
        self._users = {known: users.labels(str(known).lower()) for known in (False, True)}
        self._slates: deque[bool] = deque()
        self._events = Counter("events", "Events that the broker took.", **own)
        gauges: tuple[tuple[str, str, Read], ...] = (
            ("ready", "1 when there is a model.", self._ready),
            ("model_age_seconds", "Since the served version was made; -1 without one.", self._model_age),
            ("snapshot_age_seconds", "Since the served snapshot was made; -1 without one.", self._snapshot_age),
            ("live_lag_records", "Records of the topic not read yet; -1 when not known.", lambda: _lag_of(live)),
        )
        # what is told: our own counts, or with several processes those of all, which the library reads from its files
        self._told = self._registry if process is None else CollectorRegistry()
        if process is not None:
            MultiProcessCollector(self._told)  # type: ignore[no-untyped-call]  # the library has no types there
        self._told.register(_Gauges(gauges, process))

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Take note of an answer; `route` is a template, never a path that was sent."""
        kind = (method if method in _METHODS else "other", route, status)
        found = self._kinds.get(kind)
        if found is None:
            # the library looks a label up by its text, under a lock: once is enough
            found = self._requests.labels(kind[0], route, str(status)), self._seconds.labels(route)
            self._kinds[kind] = found
        found[0].inc()
        found[1].observe(seconds)
        while self._slates:
            self._users[self._slates.pop()].inc()

    def slate(self, *, known_user: bool) -> None:
        """Take note of a slate; it is counted with the answer that shows it."""
        self._slates.append(known_user)

    def event(self) -> None:
        """Take note of an event that the broker took."""
        self._events.inc()

    def text(self) -> bytes:
        """Return all figures as Prometheus reads them."""
        return generate_latest(self._told)

    def _ready(self) -> float:
        return float(self._model_age() >= 0.0)

    def _model_age(self) -> float:
        try:
            return self._since(self._source.bundle().model.manifest.created_at)
        except NoModel:
            return -1.0

    def _snapshot_age(self) -> float:
        try:
            stream = self._source.bundle().stream
        except NoModel:
            return -1.0
        return -1.0 if stream is None else self._since(stream.manifest.created_at)

    def _since(self, moment: int) -> float:
        return max(0, self._clock() - moment) / 1_000


def _lag_of(live: RecentEvents | None) -> float:
    lag = None if live is None else live.lag()
    return -1.0 if lag is None else float(lag)


class Measured:
    """Tells the figures of each answer; pure ASGI.

    Parameters
    ----------
    app
        What is behind.
    metrics
        Who is told.
    """

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on, and take the time."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, answered = time.perf_counter(), None

        async def timed(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = message["status"], time.perf_counter() - started
            await send(message)

        try:
            await self._app(scope, receive, timed)
        finally:
            # once the answer is out, so that nobody waits for the figures
            if answered is not None:
                self._metrics.answered(scope["method"], getattr(scope.get("route"), "path", NO_ROUTE), *answered)
