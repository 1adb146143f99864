"""Full-rank evaluation on a global time split: the model frozen, each user's history live.

Protocol. The first share of the positive interactions (by time, all users together) trains; the rest tests. Before
each test event of a user with a history, the interest ``sum_d exp(-d / 10) v_d`` over the last 20 clicks (earlier test
clicks included) ranks every candidate the user has not clicked yet; ties count against the model. Candidates are the
items with a positive interaction anywhere in the data.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import EmptyData
from common.ids import rng_for

RECENCY = 10.0
HISTORY = 20
TOP = 10
CHUNK = 512
BOOTSTRAPS = 1000


@dataclass(frozen=True, slots=True)
class TestEvents:
    """Test events with what was known before each.

    Parameters
    ----------
    candidates
        Item rows that are ranked, int64 [c], sorted.
    target
        Position among the candidates of the item that was clicked, int64 [e].
    user
        Number of the user, int64 [e]; for the bootstrap.
    history
        Item rows, newest first, int64 [e, 20], -1 where there is none.
    seen
        For each event, the positions among the candidates to leave out.
    popularity
        Training clicks of each candidate, float64 [c].
    """

    candidates: np.ndarray
    target: np.ndarray
    user: np.ndarray
    history: np.ndarray
    seen: Sequence[np.ndarray]
    popularity: np.ndarray

    def __len__(self) -> int:
        return len(self.target)


def build_test(train: Sequence[tuple[str, int]], test: Sequence[tuple[str, int]], items: int) -> TestEvents:
    """Lay out the test events from (user, item row) clicks in time order.

    Events of users without a history, and repeats of an item, are not counted.

    Raises
    ------
    EmptyData
        When no test event is left.
    """
    counts = np.bincount([row for _, row in [*train, *test]], minlength=items)
    candidates = np.flatnonzero(counts)
    place = np.full(items, -1)
    place[candidates] = np.arange(len(candidates))
    clicks: dict[str, list[int]] = {}
    for user, row in train:
        clicks.setdefault(user, []).append(row)
    numbers: dict[str, int] = {}
    target, users, history, seen = [], [], [], []
    for user, row in test:
        own = clicks.setdefault(user, [])
        if own and row not in own:
            newest = own[: -HISTORY - 1 : -1]
            target.append(place[row])
            users.append(numbers.setdefault(user, len(numbers)))
            history.append(newest + [-1] * (HISTORY - len(newest)))
            seen.append(place[np.unique(own)])
        own.append(row)
    if not target:
        raise EmptyData("no test event of a user with a history", expected="more interactions", mend="use more data")
    popularity = np.bincount([row for _, row in train], minlength=items)[candidates].astype(np.float64)
    return TestEvents(candidates, np.array(target), np.array(users), np.array(history), seen, popularity)


@dataclass(frozen=True, slots=True)
class Quality:
    """Recall@10 and NDCG@10 over events, with a 95% bootstrap interval of the recall over users."""

    recall: float
    ndcg: float
    ci95: tuple[float, float]
    events: int

    def as_json(self) -> dict[str, object]:
        """Return the keys of the command line's JSON."""
        return {"recall@10": self.recall, "ndcg@10": self.ndcg, "ci95": list(self.ci95), "events": self.events}


Scorer = Callable[[slice], np.ndarray]
"""Scores of a slice of the events: float [e, candidates]."""


def by_text(events: TestEvents, item_vectors: np.ndarray) -> Scorer:
    """Score by the interest from the history in the space of `item_vectors`, float32 [items, h]."""
    weights = np.exp(-np.arange(HISTORY, dtype=np.float32) / np.float32(RECENCY))
    among = item_vectors[events.candidates].T

    def score(part: slice) -> np.ndarray:
        history = events.history[part]
        known = item_vectors[np.maximum(history, 0)] * ((history >= 0) * weights)[..., None]
        scores: np.ndarray = known.sum(axis=1) @ among
        return scores

    return score


def by_popularity(events: TestEvents) -> Scorer:
    """Score by clicks in the training part."""
    return lambda part: np.broadcast_to(events.popularity, (len(events.target[part]), len(events.candidates)))


def at_random(events: TestEvents, seed: int) -> Scorer:
    """Score at random."""
    return lambda part: rng_for("random-row", seed, part.start).random(
        (len(events.target[part]), len(events.candidates))
    )


def measure(events: TestEvents, scorer: Scorer, seed: int = 0) -> Quality:
    """Rank all events and return the quality."""
    ranks = np.empty(len(events), dtype=np.int64)
    for start in range(0, len(events), CHUNK):
        part = slice(start, min(start + CHUNK, len(events)))
        scores = np.array(scorer(part), dtype=np.float64)
        for row, seen in enumerate(events.seen[part]):
            scores[row, seen] = -np.inf
        wanted = scores[np.arange(len(scores)), events.target[part]]
        # "not below" rather than "at least": a model that answers NaN ranks last, not first
        ranks[part] = (~(scores < wanted[:, None])).sum(axis=1)
    hits = (ranks <= TOP).astype(np.float64)
    gains = np.where(ranks <= TOP, 1.0 / np.log2(1.0 + ranks), 0.0)
    return Quality(float(hits.mean()), float(gains.mean()), bootstrap(hits, events.user, seed), len(events))


def bootstrap(values: np.ndarray, user: np.ndarray, seed: int) -> tuple[float, float]:
    """Return the 95% percentile interval of the mean, users drawn with replacement (a user's events stay together)."""
    sums, counts = np.bincount(user, weights=values), np.bincount(user)
    rng = rng_for("bootstrap", seed)
    drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=BOOTSTRAPS)
    means = (drawn @ sums) / np.maximum(drawn @ counts, 1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def control_rows(events: TestEvents, zero_shot: np.ndarray, seed: int) -> Mapping[str, Quality]:
    """Return the rows that every report carries: random, popularity, zero-shot text."""
    return {
        "random": measure(events, at_random(events, seed), seed),
        "popularity": measure(events, by_popularity(events), seed),
        "zero_shot": measure(events, by_text(events, zero_shot), seed),
    }
