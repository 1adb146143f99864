"""What each member of the blend says of the items, before it is brought to a scale: any item's, and sums over all.

Factors and texts are products of an item's row with one vector each. So their mean and spread over all items follow
from sums that were taken beforehand (`server.serving.sums`), less what the few items say that may not be shown.
"""

from dataclasses import dataclass

import numpy as np

from common.blends import BlendMembers
from server.serving.bundle import Stream
from server.serving.fusion import MemberKind
from server.serving.shortlist import Product, QuickScores

KINDS: tuple[MemberKind, ...] = ("neighbours", "factors", "text", "popularity")
"""The blend's members, in the order of `common.blends.MEMBERS`; its content is the answer's text."""
LEAST_SPREAD = 1e-6
_NEIGHBOURS, _FACTORS, _TEXT, _POPULARITY = range(len(KINDS))


@dataclass(frozen=True, slots=True)
class RawScores:
    """The members' raw scores for one question.

    Parameters
    ----------
    stream, blend
        The bundle's.
    vectors
        What item rows are multiplied with, float32 [2, d]: for the factors, and for the texts.
    neighbours
        What neighbours say of each item, float64 [n], of most of them 0; None where they say nothing.
    likeness
        How like the history each item's text is, float32 [n], where it is not in the item rows.
    query
        Likeness to a query, another member, ahead of the blend's; `query_sums`: its sum, and the sum of its squares.
    """

    stream: Stream
    blend: BlendMembers
    vectors: np.ndarray
    neighbours: np.ndarray | None
    likeness: np.ndarray | None
    query: Product | None = None
    query_sums: tuple[float, float] = (0.0, 0.0)

    @property
    def kinds(self) -> tuple[MemberKind, ...]:
        """The members, in order."""
        return KINDS if self.query is None else ("query", *KINDS)

    def at(self, rows: np.ndarray) -> np.ndarray:
        """Return what all members say of some rows, float64 [m, r]."""
        snapshot, first = self.stream.snapshot, int(self.query is not None)
        raw = np.zeros((first + len(KINDS), len(rows)))
        own = raw[first:]
        own[_FACTORS : _TEXT + 1] = self.vectors @ snapshot.item_factors[rows].T
        own[_FACTORS] += snapshot.item_bias[rows]
        own[_POPULARITY] = self.blend.popularity[rows]
        if self.neighbours is not None:
            own[_NEIGHBOURS] = self.neighbours[rows]
        if self.likeness is not None:
            own[_TEXT] = self.likeness[rows]
        if self.query is not None:
            raw[0] = self.query.rows[rows] @ self.query.vector
        return raw

    def mean_and_spread(self, without: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and spread of each member over all items but some rows, each there once, float64 [m].

        The spread is infinite where it says the same of all.
        """
        total, squares = self._sums()
        count = len(self.stream.snapshot.item_bias) - len(without)
        if not count:
            return np.zeros(len(total)), np.full(len(total), np.inf)
        left = self.at(without)
        mean = (total - left.sum(axis=1)) / count
        variance = (squares - np.einsum("mr,mr->m", left, left)) / count - mean * mean
        spread = np.sqrt(np.maximum(variance, 0.0))
        spread[spread <= LEAST_SPREAD * np.maximum(1.0, np.abs(mean))] = np.inf
        return mean, spread

    def _sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Return each member's sum over all items, and that of its squares, float64 [m]."""
        sums, width = self.stream.sums, self.vectors.shape[1]
        weights = np.zeros((len(KINDS), len(sums.columns)))
        weights[_FACTORS : _TEXT + 1, :width] = self.vectors
        # behind the rows stand the biases, which are the factors', and the popularity
        weights[_FACTORS, width] = weights[_POPULARITY, width + 1] = 1.0
        total, squares = sums.of_products(weights)
        for place, dense in ((_NEIGHBOURS, self.neighbours), (_TEXT, self.likeness)):
            if dense is not None:
                exact = dense.astype(np.float64, copy=False)
                total[place], squares[place] = exact.sum(), exact @ exact
        if self.query is None:
            return total, squares
        of_query, squares_of_query = self.query_sums
        return np.concatenate([[of_query], total]), np.concatenate([[squares_of_query], squares])

    def quick(self, scale: np.ndarray) -> QuickScores:
        """Return the members' sum, each times a number, float64 [m], but for rounding; without a query."""
        by, snapshot = scale.astype(np.float32), self.stream.snapshot
        vector = by[_FACTORS : _TEXT + 1] @ self.vectors
        columns = (snapshot.item_bias, by[_FACTORS]), (self.blend.popularity, by[_POPULARITY])
        own = (self.neighbours, by[_NEIGHBOURS]), (self.likeness, by[_TEXT])
        loose = tuple((values, factor) for values, factor in own if values is not None)
        return QuickScores((Product(snapshot.item_factors, vector, self.stream.coarse),), columns, loose)
