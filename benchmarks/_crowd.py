"""A crowd of clients and a server in simulated time: who is there, who leaves, and when each reply is read.

Events lie on a heap in the order of their times. Each client goes through the same stages, and the three things that
clients share (the server's link out, its link in, its one thread that reads replies) each serve in the order of
arrival, so a client's next event is known when it joins a queue. That needs no processes that wait for one another, and
so no library for them.

What is real: cohorts are the plan's, and replies are held back until their turn by the fleet's own `in_order`. What is
made up is in `Habits` and `Server`, each with its unit.
"""

import heapq
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from common.ids import rng_for
from common.updates import AdapterUpdate, UpdateMeta
from server.fleet.base import Failure, Reply, in_order

DAY_S = 86_400.0
READ = AdapterUpdate(UpdateMeta("", "", "", 1, 1.0), {})
"""Stands for every update: what is in one does not matter here, only how long it is."""


@dataclass(frozen=True, slots=True)
class Habits:
    """How clients differ; medians of log-normal distributions with their spreads (sigma of the logarithm).

    Parameters
    ----------
    down_mbit, up_mbit, link_spread
        Link of a client, megabits a second.
    slowness, slowness_spread
        How many times longer than a core of the machine that was measured a client computes.
    wakes_h, wakes_spread_h
        When it becomes available, idle and charging: hour of the server's day, and normal spread, time zones included.
    awake_h, awake_spread
        For how long; 24 and more is always.
    quits_per_h
        How often a client that is available is taken into use and gives up.
    poll_s
        Longest wait until a client asks for its message.
    """

    down_mbit: float = 20.0
    up_mbit: float = 5.0
    link_spread: float = 1.0
    slowness: float = 3.0
    slowness_spread: float = 0.5
    wakes_h: float = 22.0
    wakes_spread_h: float = 3.0
    awake_h: float = 7.0
    awake_spread: float = 0.4
    quits_per_h: float = 0.5
    poll_s: float = 3.0


class Crowd:
    """The clients, numbered as a fleet numbers nodes: five float32 and one bit for each.

    Parameters
    ----------
    size
        How many.
    first
        Number of the first.
    habits
        How they differ.
    seed
        Of what each of them is like.
    """

    def __init__(self, size: int, first: int, habits: Habits, seed: int) -> None:
        rng = rng_for("crowd", seed)

        def log_normal(median: float, spread: float) -> np.ndarray:
            return (median * np.exp(spread * rng.standard_normal(size, dtype=np.float32))).astype(np.float32)

        self.size, self.first, self.habits = size, first, habits
        self.down = log_normal(habits.down_mbit * 1e6 / 8, habits.link_spread)
        self.up = log_normal(habits.up_mbit * 1e6 / 8, habits.link_spread)
        self.slowness = log_normal(habits.slowness, habits.slowness_spread)
        self.wakes = (3600 * (habits.wakes_h + habits.wakes_spread_h * rng.standard_normal(size))).astype(np.float32)
        self.awake = log_normal(3600 * habits.awake_h, habits.awake_spread)
        self.came_before = np.zeros(size, dtype=bool)

    def left_s(self, index: np.ndarray, now_s: float) -> np.ndarray:
        """Return for how many seconds each of some clients stays available from now; 0 for one that is not."""
        since = np.mod(now_s - self.wakes[index].astype(np.float64), DAY_S)
        stays = np.where(self.awake[index] >= DAY_S, math.inf, self.awake[index] - since)
        return np.maximum(stays, 0.0)


@dataclass(frozen=True, slots=True)
class Server:
    """What clients share, and the rules of the round.

    Parameters
    ----------
    out_bytes_s, in_bytes_s
        Its link.
    read_s, sum_s
        Processor time to read a reply out of its message, and to add it up.
    timeout_s
        The deadline of the round, the plan's own.
    notice_s
        How long after a client has gone its silence is an answer.
    """

    out_bytes_s: float
    in_bytes_s: float
    read_s: float
    sum_s: float
    timeout_s: float
    notice_s: float


@dataclass(frozen=True, slots=True)
class Work:
    """What a client does in a round.

    Parameters
    ----------
    down_bytes, up_bytes
        Its message and its reply, as they travel.
    start_s, first_s, train_s
        On the measured core: before each round, once before its first, and training.
    """

    down_bytes: int
    up_bytes: int
    start_s: float
    first_s: float
    train_s: float


@dataclass(frozen=True, slots=True)
class Told:
    """What came of a round.

    Parameters
    ----------
    asked
        The cohort.
    lost
        Clients without a counted reply: ``offline`` when the round began, ``left`` in the middle, ``late``.
    replied
        Replies that counted.
    most_s
        When nine tenths of the replies had come.
    seconds
        When the round ended.
    down_bytes, up_bytes
        Through the server's link.
    held
        The most replies that were kept back at a time, until those before them were there.
    in_busy_s, thread_busy_s
        How long the link in and the thread that reads had something to do.
    """

    asked: int
    lost: dict[str, int]
    replied: int
    most_s: float
    seconds: float
    down_bytes: int
    up_bytes: int
    held: int
    in_busy_s: float
    thread_busy_s: float


class Round:
    """One round in simulated time.

    Parameters
    ----------
    crowd, server, work
        Who, against whom, at what.
    cohort
        Numbers of the clients that are asked, sorted.
    began_s
        Time of the server's day.
    rng
        Of this round's chances.
    """

    def __init__(
        self, crowd: Crowd, server: Server, work: Work, cohort: Sequence[int], began_s: float, rng: np.random.Generator
    ) -> None:
        self._crowd, self._server, self._work, self._cohort = crowd, server, work, cohort
        self._index = np.asarray(cohort, dtype=np.int64) - crowd.first
        stays, quits = crowd.left_s(self._index, began_s), crowd.habits.quits_per_h
        patience = rng.exponential(3600 / quits, len(cohort)) if quits else np.full(len(cohort), math.inf)
        self._gone = np.where(stays > 0, np.minimum(stays, patience), 0.0)
        self._polls = rng.uniform(0.0, crowd.habits.poll_s, len(cohort))
        self._held = self._most_held = 0
        self._now = self._in_free = self._thread_free = self._in_busy = self._thread_busy = 0.0
        self._read: list[float] = []
        self._up_bytes = self._down_bytes = 0
        self._lost: Counter[str] = Counter({"offline": 0, "left": 0, "late": 0})

    def play(self) -> Told:
        """Play it to its end."""
        for reply in in_order(self._cohort, self._watched(self._arrivals())):
            if not isinstance(reply.outcome, Failure):
                self._held -= 1
                self._use_thread(self._server.sum_s)
        end = max(self._now, self._thread_free)
        most = self._read[math.ceil(0.9 * len(self._read)) - 1] if self._read else end
        return Told(
            len(self._cohort), dict(self._lost), len(self._read), most, end, self._down_bytes, self._up_bytes,
            self._most_held, self._in_busy, self._thread_busy,
        )  # fmt: skip

    def _watched(self, arriving: Iterator[Reply]) -> Iterator[Reply]:
        """Count the replies that are in the server's memory: read, and not yet added up."""
        for reply in arriving:
            if not isinstance(reply.outcome, Failure):
                self._held += 1
                self._most_held = max(self._most_held, self._held)
            yield reply

    def _use_thread(self, seconds: float) -> float:
        self._thread_free = max(self._now, self._thread_free) + seconds
        self._thread_busy += seconds
        return self._thread_free

    def _arrivals(self) -> Iterator[Reply]:
        """Yield replies and failures in the order in which the server learns of them, as `GridFleet.train` does."""
        events = self._sendings()
        heapq.heapify(events)
        while events and events[0][0] < self._server.timeout_s:
            self._now, place, stage = heapq.heappop(events)
            if stage == "gone":
                self._lost["left"] += 1
                yield self._failure(place, "node unavailable")
            elif stage == "read":
                self._read.append(self._now)
                self._crowd.came_before[self._index[place]] = True
                yield Reply(self._cohort[place], READ, self._work.up_bytes, self._work.down_bytes)
            else:
                heapq.heappush(events, self._next(place, stage))
        if events:
            self._now = self._server.timeout_s
        for place, stage in sorted((place, stage) for _, place, stage in events):
            self._lost["left" if stage == "gone" else "late"] += 1
            yield self._failure(place, "no reply in time")
        for place in np.flatnonzero(self._gone <= 0).tolist():
            self._lost["offline"] += 1
            yield self._failure(place, "not connected")

    def _failure(self, place: int, reason: str) -> Reply:
        return Reply(self._cohort[place], Failure(self._cohort[place], reason))

    def _sendings(self) -> list[tuple[float, int, str]]:
        """Return when each client that is there has its message: the server's link serves one after another."""
        there = np.flatnonzero(self._gone > 0)
        self._down_bytes = self._work.down_bytes * len(there)
        sent = self._work.down_bytes / self._server.out_bytes_s * np.arange(1, len(there) + 1) + self._polls[there]
        has_it = sent + self._work.down_bytes / self._crowd.down[self._index[there]]
        return [
            self._unless_gone(time, place, "train") for time, place in zip(has_it.tolist(), there.tolist(), strict=True)
        ]

    def _unless_gone(self, time: float, place: int, stage: str) -> tuple[float, int, str]:
        """Return the event, or that the client's silence is noticed where it leaves before."""
        gone = float(self._gone[place])
        return (time, place, stage) if time < gone else (gone + self._server.notice_s, place, "gone")

    def _next(self, place: int, stage: str) -> tuple[float, int, str]:
        """Return the event that follows on one: trained, sent, through the server's link, read."""
        index, work = self._index[place], self._work
        if stage == "train":
            seconds = work.start_s + work.train_s + (0.0 if self._crowd.came_before[index] else work.first_s)
            return self._unless_gone(self._now + seconds * float(self._crowd.slowness[index]), place, "send")
        if stage == "send":
            return self._unless_gone(self._now + work.up_bytes / float(self._crowd.up[index]), place, "arrive")
        if stage == "arrive":
            took = work.up_bytes / self._server.in_bytes_s
            self._in_free = max(self._now, self._in_free) + took
            self._in_busy += took
            self._up_bytes += work.up_bytes
            return self._in_free, place, "in"
        return self._use_thread(self._server.read_s), place, "read"
