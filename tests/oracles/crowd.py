"""Slow twin of a round of the crowd: no heap of events, each client's times one after another, queues by sorting."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Client:
    """One client: when it asks, its link and speed, and when it leaves; a seconds' number below 0 was never there."""

    asks: float
    down: float
    train: float
    up: float
    gone: float


@dataclass(frozen=True, slots=True)
class Shared:
    """The server's link out and in (bytes a second), its time to read a reply, and how it notices who has gone."""

    out: float
    into: float
    read: float
    notice: float


def _queue(arrivals: dict[int, float], takes: float) -> dict[int, float]:
    """Return when each is through a queue that serves one after another."""
    free, through = 0.0, {}
    for place in sorted(arrivals, key=lambda place: (arrivals[place], place)):
        free = max(free, arrivals[place]) + takes
        through[place] = free
    return through


def times_of(
    clients: Sequence[Client], shared: Shared, down: int, up: int
) -> tuple[dict[int, float], dict[int, float]]:
    """Return when each reply is read, and when each client that leaves is noticed; there is no deadline."""
    there = [place for place, client in enumerate(clients) if client.gone > 0]
    arrivals: dict[int, float] = {}
    noticed: dict[int, float] = {}
    for order, place in enumerate(there, start=1):
        client = clients[place]
        done = client.asks + order * down / shared.out + down / client.down + client.train + up / client.up
        if done < client.gone:
            arrivals[place] = done
        else:
            noticed[place] = client.gone + shared.notice
    return _queue(_queue(arrivals, up / shared.into), shared.read), noticed


def most_held(read: dict[int, float], noticed: dict[int, float], places: int) -> int:
    """Return the most replies in memory at once, where each waits for all places before it."""
    known = {**read, **noticed}
    turn = [max(known.get(before, math.inf) for before in range(place + 1)) for place in range(places)]
    return max(
        (sum(read[other] <= now <= turn[other] for other in read) for now in read.values()),
        default=0,
    )
