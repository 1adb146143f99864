"""Which items come into question: the best by a score that is good but for rounding, found in one pass over all.

The score is a sum of products of item rows with vectors, of one number an item, and of what a few items get on top.
Where the rows are there in 8 bits as well (`server.serving.coarse`), a first pass over these leaves few items, and only
their rows are read; otherwise all are.
"""

from dataclasses import dataclass, replace

import numpy as np

from server.serving.coarse import NOT_COARSE, CoarseRows
from server.serving.narrowing import Given, shortlisted, still
from server.serving.sums import ItemSums

CLOSE = 16
"""So many items beyond those that are wanted: the score may order neighbours wrongly, by rounding."""
_BLOCK = 64


@dataclass(frozen=True, slots=True)
class Product:
    """Items' rows, float32 [n, d], each times a vector, float32 [d].

    `coarse`: the rows in 8 bits, where there are such.
    """

    rows: np.ndarray
    vector: np.ndarray
    coarse: CoarseRows | None = None

    def times(self, factor: np.float32) -> "Product":
        """Return the product, times a number."""
        return replace(self, vector=self.vector * factor)

    def parts(self) -> Given:
        """Return what the compiled pass is given."""
        # the vector may be a row of an array that nobody may write to, or not
        return still(self.rows), self.vector.copy(), (self.coarse or NOT_COARSE).parts()


_NO_PRODUCT = Product(np.empty((0, 0), dtype=np.float32), np.empty(0, dtype=np.float32))

Column = tuple[np.ndarray, np.float32]


@dataclass(frozen=True, slots=True)
class QuickScores:
    """Scores of all items, but for a constant and for rounding.

    Parameters
    ----------
    products
        Are added up, one or two.
    columns
        ``(values, factor)``: one number an item, [n], times a factor; the sums of these are known beforehand.
    loose
        The same, of numbers that are this question's own.
    extras
        ``(rows, amounts)``: what a few items get on top, each row once, float32.
    """

    products: tuple[Product, ...]
    columns: tuple[Column, ...]
    loose: tuple[Column, ...] = ()
    extras: tuple[tuple[np.ndarray, np.ndarray], ...] = ()

    def times(self, factor: float) -> "QuickScores":
        """Return the scores, times a number."""
        by = np.float32(factor)
        columns, loose = (
            tuple((values, by * factor) for values, factor in each) for each in (self.columns, self.loose)
        )
        extras = tuple((rows, by * amounts) for rows, amounts in self.extras)
        return QuickScores(tuple(product.times(by) for product in self.products), columns, loose, extras)

    def of_all(self) -> np.ndarray:
        """Return the scores of all items, float32 [n]."""
        scores = self._without_products()
        for product in self.products:
            scores += product.rows @ product.vector
        return scores

    def spread(self, sums: ItemSums, over: np.ndarray) -> float:
        """Return the standard deviation over some items, bool [n]; `sums` are of the one product's rows, and columns.

        Raises
        ------
        ValueError
            When there are several products.
        """
        (product,) = self.products
        vector = product.vector.astype(np.float64)
        total, squares = sums.of_product(vector, *(float(factor) for _, factor in self.columns))
        # of the items that get more, or do not count, the sums say something else
        more = (*(np.flatnonzero(values) for values, _ in self.loose), *(rows for rows, _ in self.extras))
        other = np.unique(np.concatenate([np.flatnonzero(~over), *more]))
        summed = product.rows[other].astype(np.float64) @ vector + _columns_at(self.columns, other)
        whole = summed + _columns_at(self.loose, other)
        for rows, amounts in self.extras:
            whole[np.searchsorted(other, rows)] += amounts
        whole[~over[other]] = 0.0
        count = max(1, int(over.sum()))
        mean = (total + float((whole - summed).sum())) / count
        return float(np.sqrt(max(0.0, (squares + float(whole @ whole - summed @ summed)) / count - mean * mean)))

    def shortlist(self, eligible: np.ndarray, wanted: int) -> np.ndarray:
        """Return rows, rising, among which are the best eligible ones, as many as are wanted.

        Raises
        ------
        ValueError
            When there is no product, or more than two.
        """
        first, more = (*self.products, _NO_PRODUCT) if len(self.products) == 1 else self.products
        base, two = self._without_products(), more is not _NO_PRODUCT
        return shortlisted(base, eligible, wanted + CLOSE, first.parts(), two, more.parts())

    def _without_products(self) -> np.ndarray:
        scores = np.zeros(len(self.products[0].rows), dtype=np.float32)
        for values, factor in (*self.columns, *self.loose):
            scores += np.multiply(values, factor, dtype=np.float32, casting="same_kind")
        for rows, amounts in self.extras:
            scores[rows] += amounts
        return scores


def _columns_at(columns: tuple[Column, ...], rows: np.ndarray) -> np.ndarray:
    """Return what columns add to some rows, float64."""
    added = np.zeros(len(rows))
    for values, factor in columns:
        added += values[rows].astype(np.float64) * float(factor)
    return added


def best(scores: np.ndarray, eligible: np.ndarray, k: int) -> np.ndarray:
    """Return the rows of the k best eligible items, best first, ties in catalogue order.

    The k-th largest of the greatest scores of many blocks is no greater than the k-th largest score, so whatever is
    below it is left out before anything is sorted: of many items nearly all, and of most blocks every one.
    """
    blocks = len(scores) // _BLOCK
    threshold = -np.inf
    if blocks > k:
        shown = np.where(eligible, scores, -np.inf)
        whole = shown[: blocks * _BLOCK].reshape(blocks, _BLOCK)
        greatest = whole.max(axis=1)
        threshold = np.partition(greatest, blocks - k)[blocks - k]
    if threshold > -np.inf:
        hit = np.flatnonzero(greatest >= threshold)
        block, place = np.nonzero(whole[hit] >= threshold)
        rest = blocks * _BLOCK + np.flatnonzero(shown[blocks * _BLOCK :] >= threshold)
        rows = np.concatenate([hit[block] * _BLOCK + place, rest])
    else:
        rows = np.flatnonzero(eligible)
    if len(rows) > k:
        among = scores[rows]
        last = np.partition(among, len(rows) - k)[len(rows) - k]
        above = rows[among > last]
        level = rows[among == last][: k - len(above)]
        rows = np.sort(np.concatenate([above, level]))
    ordered: np.ndarray = rows[np.argsort(-scores[rows], kind="stable")]
    return ordered
