"""Sums over all items, taken once a version: mean and spread of a product follow from them without going through it.

For items with columns x and weights w: ``sum_k x_k . w`` is ``(sum x) . w``, and the sum of the squares is
``w' (sum x x') w``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

_ROWS = 1_024
"""At a time: what is copied of them stays small, so that memory is used again and not fetched and let go of."""
MOST = 16_384
"""Rows that an estimate goes by."""


@dataclass(frozen=True, slots=True)
class ItemSums:
    """What the items' columns add up to.

    Parameters
    ----------
    columns
        Sum of each, float64 [d].
    products
        Sum of their products with one another, float64 [d, d].
    """

    columns: np.ndarray
    products: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, *more: np.ndarray) -> "ItemSums":
        """Add up float32 [n, d], and more columns of the same items beside it, [n] each."""
        width = rows.shape[1] + len(more)
        columns, products = np.zeros(width), np.zeros((width, width))
        for start in range(0, len(rows), _ROWS):
            here = slice(start, start + _ROWS)
            part = np.column_stack([rows[here], *(column[here] for column in more)]).astype(np.float64)
            columns += part.sum(axis=0)
            products += part.T @ part
        return cls(columns, products)

    @classmethod
    def estimated(cls, rows: np.ndarray) -> "ItemSums":
        """Add up float32 [n, d]; of more than `MOST` rows that many from everywhere, as many times as there are more.

        A spread that follows is off by some half percent then, one standard error.
        """
        some = rows[:: -(-len(rows) // MOST) or 1]
        sums, times = cls.of(some), len(rows) / max(1, len(some))
        return cls(sums.columns * times, sums.products * times)

    def of_products(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return sum and sum of squares of the columns times each row of weights, float64 [m, d]; both [m]."""
        return weights @ self.columns, np.einsum("md,md->m", weights @ self.products, weights)

    def of_product(self, weights: np.ndarray, *more: float) -> tuple[float, float]:
        """Return sum and sum of squares of the columns times weights, float [c]; `more` weighs the columns behind."""
        (total,), (squares,) = self.of_products(np.concatenate([weights.astype(np.float64), more])[None])
        return float(total), float(squares)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "ItemSums":
        """Return what `arrays` was asked of."""
        return cls(**{field.name: arrays[field.name] for field in fields(cls)})
