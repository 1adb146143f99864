"""Item-kNN that learns from every click, and knows that what came just before counts most."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from common.compiled import compiled
from common.errors import InvalidSetting
from stream.learner.kernels import GOLDEN, UserRows, mix
from stream.learner.packing import packed_places, taken_in_rows, unpacked_places
from stream.learner.parts import Arrays, Event, Ground, Part, PartRanker, check_counts, check_rates, decay_of

_PROBES = 8
"""A pair lives in one of so many places of its row; when all are taken it replaces the lightest."""
FEWEST_PLACES = 8
_DEPTH = 6.0
"""Of the query: beyond so many recencies an item weighs less than a four-hundredth of the newest."""


class Pairs(NamedTuple):
    """Co-occurrence, one row an item: int32 [n, places] the other item's row plus 1 (0: free), float32 its weight.

    `scale` is float32 [n]: ``1 / (n_k ** beta + 1)``.
    """

    other: np.ndarray
    weight: np.ndarray
    scale: np.ndarray


class Query(NamedTuple):
    """How to learn and to ask: float32 decays of the history, and the powers of the counts."""

    pair_decay: np.ndarray
    decay: np.ndarray
    alpha: np.float32
    beta: np.float32


@compiled
def add_pair(pairs: Pairs, row: int, other: int, amount: np.float32) -> None:
    """Add to the weight of `other` in the row of `row`, which may cost the lightest of its probes its place.

    A negative amount takes away, down to 0, and makes no new pair.
    """
    places = pairs.other.shape[1]
    start = np.int64(mix(np.uint64(other + 1) * GOLDEN) % np.uint64(places))
    lightest, least = -1, np.float32(np.inf)
    for step in range(_PROBES):
        place = (start + step) % places
        found = pairs.other[row, place]
        if found == other + 1:
            pairs.weight[row, place] = max(np.float32(0.0), pairs.weight[row, place] + amount)
            return
        held = np.float32(-1.0) if found == 0 else pairs.weight[row, place]
        if held < least:
            lightest, least = place, held
    if amount > np.float32(0.0):
        pairs.other[row, lightest] = other + 1
        pairs.weight[row, lightest] = amount


@compiled
def learn_pairs(
    pairs: Pairs, users: UserRows, decay: np.ndarray, user: int, item: int, amount: np.float32, both: bool
) -> None:
    """Add `amount` times the decay of each item of the history to its pair with `item`; `both`: in both rows."""
    if user < 0:
        return
    ring, positives = users.ring[user], users.positives[user]
    window = len(ring)
    for age in range(min(positives, window)):
        other = ring[(positives - 1 - age) % window]
        if other != item:
            add_pair(pairs, other, item, amount * decay[age])
            if both:
                add_pair(pairs, item, other, amount * decay[age])


@compiled
def scale_of(count: int, beta: np.float32) -> np.float32:
    """Return ``1 / (count ** beta + 1)``."""
    return np.float32(1.0) / (np.float32(count) ** beta + np.float32(1.0))


@compiled
def learn_neighbours(
    pairs: Pairs, users: UserRows, counts: np.ndarray, query: Query, user: int, item: int, weight: np.float32
) -> None:
    """Pair the item with the history, both ways, and count it."""
    learn_pairs(pairs, users, query.pair_decay, user, item, weight, True)
    counts[item] += 1
    pairs.scale[item] = scale_of(counts[item], query.beta)


@compiled
def score_neighbours(
    pairs: Pairs, users: UserRows, counts: np.ndarray, query: Query, user: int, sums: np.ndarray, out: np.ndarray
) -> None:
    """Write ``scale_k * sum_d decay_d C[h_d, k] / (n_{h_d} ** alpha + 1)`` to `out`, [n]; `sums`, [n + 1], is room."""
    if user < 0:
        out[:] = np.float32(0.0)
        return
    ring, positives = users.ring[user], users.positives[user]
    window = len(ring)
    # free places add their 0 to one more sum before all others: no branch to guess at
    sums[: len(out) + 1] = np.float32(0.0)
    for age in range(min(positives, window, len(query.decay))):
        row = ring[(positives - 1 - age) % window]
        share = query.decay[age] / (np.float32(counts[row]) ** query.alpha + np.float32(1.0))
        others, weights = pairs.other[row], pairs.weight[row]
        for place in range(len(others)):
            sums[np.uint32(others[place])] += share * weights[place]
    for row in range(len(out)):
        out[row] = sums[row + 1] * pairs.scale[row]


@compiled
def list_pairs(pairs: Pairs, asking: np.ndarray, starts: np.ndarray, items: np.ndarray, weights: np.ndarray) -> None:
    """Write each row's items and their weights as they are asked, ``asking_i C[i, k] scale_k``, from ``starts[i]`` on.

    Pairs that weigh 0 are left out; `starts` knows of none.
    """
    for row in range(len(asking)):
        end = starts[row]
        if end == starts[row + 1]:
            continue
        for place in range(pairs.weight.shape[1]):
            if pairs.weight[row, place] != np.float32(0.0):
                item = pairs.other[row, place] - 1
                items[end] = item
                weights[end] = pairs.weight[row, place] * asking[row] * pairs.scale[item]
                end += 1


class NeighboursPart(Part):
    """The arithmetic of `Neighbours`; its parameters are the same."""

    name = "neighbours"

    def __init__(
        self, window: int, places: int, gap: float, recency: float, alpha: float, beta: float, dislike: float
    ) -> None:
        check_counts({"places": places}, FEWEST_PLACES)
        if places & (places - 1):
            raise InvalidSetting(f"places {places!r}", expected="a power of 2")
        check_rates(
            {"gap": gap, "recency": recency, "alpha": alpha, "beta": beta, "dislike": dislike},
            zero_allowed=frozenset({"alpha", "beta", "dislike"}),
        )
        self._places, self._dislike = places, np.float32(dislike)
        depth = min(window, max(1, int(np.ceil(_DEPTH * recency))))
        self._query = Query(decay_of(window, gap), decay_of(depth, recency), np.float32(alpha), np.float32(beta))

    def item_arrays(self) -> Arrays:
        """Return the item arrays, each of no rows."""
        return {
            "other": np.zeros((0, self._places), dtype=np.int32),
            "weight": np.zeros((0, self._places), dtype=np.float32),
            "scale": np.zeros(0, dtype=np.float32),
            "counts": np.zeros(0, dtype=np.int64),
        }

    def wire(self, items: Mapping[str, np.ndarray], fixed: Mapping[str, np.ndarray], ground: Ground) -> None:
        """Take up arrays that were replaced."""
        self._pairs = Pairs(items["other"], items["weight"], items["scale"])
        self._counts, self._users = items["counts"], ground.users

    def follow(self, users: UserRows) -> None:
        """Take these histories instead of the likes; until `wire` is called again."""
        self._users = users

    def packed(self, items: Arrays) -> Arrays:
        """Return the places that are taken, the scales and the counts."""
        return {
            **packed_places(items["other"], items["weight"]), "scale": items["scale"], "counts": items["counts"],
        }  # fmt: skip

    def unpacked(self, items: Arrays) -> Arrays:
        """Return the rows with all places."""
        other, weight = unpacked_places(items["filled"], items["keys"], items["values"])
        return {"other": other, "weight": weight, "scale": items["scale"], "counts": items["counts"]}

    def start_item(self, row: int, item: str) -> None:
        """Give the item the scale of one without clicks."""
        self._pairs.scale[row] = self._scale(0)

    @property
    def pairs(self) -> Pairs:
        """What was learned; rows beyond the known items mean nothing."""
        return self._pairs

    @property
    def counts(self) -> np.ndarray:
        """How often each item was paired with a history, int64 [capacity]."""
        return self._counts

    @property
    def query(self) -> Query:
        """How the history is asked, and how it is paired."""
        return self._query

    def similarities(self, n_items: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return S, with which the score is ``sum_d decay_d S[h_d, k]``, row by row.

        Returns
        -------
        tuple
            int64 [n + 1], int32 [p] and float32 [p]: row i has the weights ``[starts[i]:starts[i + 1]]`` at the items
            ``[starts[i]:starts[i + 1]]``.
        """
        pairs = Pairs(*(array[:n_items] for array in self._pairs))
        asking = np.float32(1.0) / (self._counts[:n_items].astype(np.float32) ** self._query.alpha + np.float32(1.0))
        starts = np.concatenate([[0], np.cumsum(taken_in_rows(pairs.weight))]).astype(np.int64)
        items, weights = np.empty(starts[-1], dtype=np.int32), np.empty(starts[-1], dtype=np.float32)
        list_pairs(pairs, asking, starts, items, weights)
        return starts, items, weights

    def _scale(self, count: int) -> np.float32:
        return np.float32(scale_of(count, self._query.beta))

    def score(self, user: int, event: int, out: np.ndarray) -> None:
        """Write the scores; all are 0 without a history."""
        room = np.empty(len(out) + 1, dtype=np.float32)
        score_neighbours(self._pairs, self._users, self._counts, self._query, user, room, out)

    def unknown(self, user: int, event: int, item: str) -> float:
        """Return 0: it has no neighbours."""
        return 0.0

    def like(self, event: Event) -> None:
        """Pair the item with the history, both ways."""
        amount = np.float32(event.weight)
        learn_neighbours(self._pairs, self._users, self._counts, self._query, event.user, event.item, amount)

    def dislike(self, event: Event) -> None:
        """Loosen the pairs that lead from the history to the item."""
        amount = -self._dislike * np.float32(event.weight)
        learn_pairs(self._pairs, self._users, self._query.pair_decay, event.user, event.item, amount, False)


class Neighbours(PartRanker):
    r"""Incremental item-kNN, aware of recency in what it learns and in what it asks.

    With $h_0, h_1, \dots$ the user's liked items, newest first, a like of $i$ adds $e^{-d / \gamma}$ to $C_{h_d i}$
    and $C_{i h_d}$, and

    $$s_k = \frac{1}{n_k^\beta + 1} \sum_d \frac{e^{-d / \tau}}{n_{h_d}^\alpha + 1} C_{h_d k}.$$

    Each row of C has a fixed number of places, so memory grows with items and not with events: a pair has eight places
    to choose from (by a stable hash) and replaces the lightest of them when all are taken. A dislike takes away from
    the pairs that lead to the item. Reading never changes the state.

    Parameters
    ----------
    places
        Pairs an item, a power of 2.
    window
        How many of a user's newest liked items are paired and asked.
    gap
        $\gamma$, in events of the user.
    recency
        $\tau$, in events of the user.
    alpha, beta
        How much frequent items are held back, as askers and as answers.
    dislike
        How much of a like a dislike takes away.
    seed
        Unused; every learner has one.

    Examples
    --------
    >>> from stream.learner.neighbours import Neighbours
    >>> model = Neighbours()
    >>> model.learn_many(["ann", "ann", "bob", "bob"], ["tea", "cake", "tea", "cake"])
    >>> model.learn_one("cid", "tea")
    >>> [item for item, _ in model.top_k("cid", 1)]
    ['cake']

    References
    ----------
    Sarwar, Karypis, Konstan, Riedl: Item-based collaborative filtering recommendation algorithms. WWW 2001.
    """

    def __init__(
        self,
        places: int = 512,
        window: int = 50,
        gap: float = 15.0,
        recency: float = 4.0,
        alpha: float = 0.5,
        beta: float = 0.55,
        dislike: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.places, self.gap, self.recency = places, gap, recency
        self.alpha, self.beta, self.dislike = alpha, beta, dislike
        check_counts({"window": window})
        super().__init__((NeighboursPart(window, places, gap, recency, alpha, beta, dislike),), seed, window)
