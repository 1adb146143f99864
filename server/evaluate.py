"""Full-rank evaluation on a global time split: the model frozen, each user's history live.

Protocol. The first share of the positive interactions (by time, all users together) trains; the rest tests. Before
each test event of a user with a history, the interest ``sum_d exp(-d / 10) v_d`` over the last 20 clicks (earlier test
clicks included) ranks every candidate the user has not clicked yet; ties count against the model. Candidates are the
items with a positive interaction anywhere in the data. Items may be hidden from training: their clicks teach nothing
and count for nothing, but stay in their users' histories.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import EmptyData
from common.ids import rng_for

RECENCY = 10.0
HISTORY = 20
TOP = 10
CHUNK = 512
BOOTSTRAPS = 1000
NEGATIVES = 99
"""Of the sampled metric, the number that most published figures use."""


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
        Training clicks of each candidate, float64 [c]; 0 makes it a cold item.
    users
        Id of each user number.
    """

    candidates: np.ndarray
    target: np.ndarray
    user: np.ndarray
    history: np.ndarray
    seen: Sequence[np.ndarray]
    popularity: np.ndarray
    users: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.target)


def build_test(
    train: Sequence[tuple[str, int]],
    test: Sequence[tuple[str, int]],
    items: int,
    hidden: Collection[int] = frozenset(),
) -> TestEvents:
    """Lay out the test events from (user, item row) clicks in time order.

    Events of users without a history, and repeats of an item, are not counted.

    Parameters
    ----------
    train, test
        Clicks before and after the cut.
    items
        Size of the catalogue.
    hidden
        Item rows that training did not see.

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
    taught = np.array([row for _, row in train if row not in hidden], dtype=np.int64)
    popularity = np.bincount(taught, minlength=items)[candidates].astype(np.float64)
    return TestEvents(
        candidates, np.array(target), np.array(users), np.array(history), seen, popularity, tuple(numbers)
    )


@dataclass(frozen=True, slots=True)
class Quality:
    """Recall, NDCG and MRR at 10 over events, with a 95% bootstrap interval of the recall over users."""

    recall: float
    ndcg: float
    ci95: tuple[float, float]
    events: int
    mrr: float = 0.0

    def as_json(self) -> dict[str, object]:
        """Return the keys of the command line's JSON."""
        return {
            "recall@10": self.recall,
            "ndcg@10": self.ndcg,
            "mrr@10": self.mrr,
            "ci95": list(self.ci95),
            "events": self.events,
        }


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


@dataclass(frozen=True, slots=True)
class Ranking:
    """Where a scorer puts the clicked item of each event; rank 1 is first.

    Parameters
    ----------
    full
        Among all unseen candidates, int64 [e].
    among_cold
        Among the unseen candidates without a training click, int64 [e]; 0 where the clicked item is not one.
    sampled
        Among itself and `NEGATIVES` unseen candidates drawn at random, the same for every scorer, int64 [e].
    shown
        Whether a candidate was in any first ten, bool [c]; which of tied candidates are is left open.
    seconds
        Time the scorer took.
    """

    full: np.ndarray
    among_cold: np.ndarray
    sampled: np.ndarray
    shown: np.ndarray
    seconds: float

    @property
    def hits(self) -> np.ndarray:
        """Whether the clicked item was in the first ten of all, float64 [e]."""
        return (self.full <= TOP).astype(np.float64)

    @property
    def coverage(self) -> float:
        """Share of the candidates that were in any first ten."""
        return float(self.shown.mean())


def rank(events: TestEvents, scorer: Scorer, seed: int = 0) -> Ranking:
    """Rank all events; `seed` draws the sampled candidates."""
    cold = events.popularity == 0
    full, among_cold, sampled = (np.zeros(len(events), dtype=np.int64) for _ in range(3))
    shown, seconds = np.zeros(len(events.candidates), dtype=bool), 0.0
    for start in range(0, len(events), CHUNK):
        part = slice(start, min(start + CHUNK, len(events)))
        began = time.perf_counter()
        scores = np.array(scorer(part), dtype=np.float64)
        seconds += time.perf_counter() - began
        for row, seen in enumerate(events.seen[part]):
            scores[row, seen] = -np.inf
        rows, target = np.arange(len(scores)), events.target[part]
        # "not below" rather than "at least": a model that answers NaN ranks last, not first
        above = ~(scores < scores[rows, target][:, None])
        full[part] = above.sum(axis=1)
        among_cold[part] = np.where(cold[target], (above & cold).sum(axis=1), 0)
        drawn = _negatives(events, part, seed)
        sampled[part] = 1 + np.take_along_axis(above, np.maximum(drawn, 0), axis=1).sum(axis=1, where=drawn >= 0)
        shown |= _first_ten(scores)
    return Ranking(full, among_cold, sampled, shown, seconds)


def _negatives(events: TestEvents, part: slice, seed: int) -> np.ndarray:
    """Draw up to `NEGATIVES` unseen candidates other than the target for each event, int64 [e, n], -1 where too few."""
    target = events.target[part]
    keys = rng_for("negatives", seed, part.start).random((len(target), len(events.candidates)))
    for row, seen in enumerate(events.seen[part]):
        keys[row, seen] = np.inf
    keys[np.arange(len(target)), target] = np.inf
    count = min(NEGATIVES, len(events.candidates))
    drawn = np.argpartition(keys, count - 1, axis=1)[:, :count]
    return np.where(np.isinf(np.take_along_axis(keys, drawn, axis=1)), -1, drawn)


def _first_ten(scores: np.ndarray) -> np.ndarray:
    """Return which candidates are in the first ten of any row of scores [e, c], seen ones at -inf: bool [c]."""
    usable = np.where(np.isnan(scores), -np.inf, scores)
    count = min(TOP, scores.shape[1])
    best = np.argpartition(-usable, count - 1, axis=1)[:, :count]
    shown = np.zeros(scores.shape[1], dtype=bool)
    shown[best[~np.isinf(np.take_along_axis(usable, best, axis=1))]] = True
    return shown


def quality_of(ranks: np.ndarray, user: np.ndarray, seed: int = 0) -> Quality:
    """Return the quality of ranks int64 [e] of the events of users int64 [e]; at least one event."""
    inside = ranks <= TOP
    hits = inside.astype(np.float64)
    gains = np.where(inside, 1.0 / np.log2(1.0 + ranks), 0.0)
    inverse = np.where(inside, 1.0 / ranks, 0.0)
    interval = bootstrap(hits, user, seed)
    return Quality(float(hits.mean()), float(gains.mean()), interval, len(ranks), float(inverse.mean()))


def measure(events: TestEvents, scorer: Scorer, seed: int = 0) -> Quality:
    """Rank all events and return the quality."""
    return quality_of(rank(events, scorer, seed).full, events.user, seed)


def bootstrap(values: np.ndarray, user: np.ndarray, seed: int) -> tuple[float, float]:
    """Return the 95% percentile interval of the mean, users drawn with replacement (a user's events stay together).

    For the difference of two models, hand in the difference at each event: the interval is then a paired one, and much
    narrower than what the two models' own intervals would suggest.
    """
    _, number = np.unique(user, return_inverse=True)
    sums, counts = np.bincount(number, weights=values), np.bincount(number)
    rng = rng_for("bootstrap", seed)
    drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=BOOTSTRAPS)
    means = (drawn @ sums) / np.maximum(drawn @ counts, 1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def control_scorers(events: TestEvents, zero_shot: np.ndarray, seed: int) -> Mapping[str, Scorer]:
    """Return the scorers that every report carries: random, popularity, zero-shot text."""
    return {
        "random": at_random(events, seed),
        "popularity": by_popularity(events),
        "zero_shot": by_text(events, zero_shot),
    }


def control_rows(events: TestEvents, zero_shot: np.ndarray, seed: int) -> Mapping[str, Quality]:
    """Return the quality of `control_scorers`."""
    scorers = control_scorers(events, zero_shot, seed)
    return {name: measure(events, scorer, seed) for name, scorer in scorers.items()}
