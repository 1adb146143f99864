"""Sums over all items, taken once a version: mean and spread of a product follow from them without going through it.

For items with columns x and weights w: ``sum_k x_k . w`` is ``(sum x) . w``, and the sum of the squares is
``w' (sum x x') w``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

_ROWS = 8_192


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
    def of(cls, rows: np.ndarray, *more: np.ndarray, within: type[np.floating] = np.float64) -> "ItemSums":
        """Add up float32 [n, d], and more columns of the same items beside it, [n] each.

        `within`: what lots of rows are added up in, before they are added to the others in float64.
        """
        width = rows.shape[1] + len(more)
        columns, products = np.zeros(width), np.zeros((width, width))
        for start in range(0, len(rows), _ROWS):
            here = slice(start, start + _ROWS)
            part = rows[here] if not more else np.column_stack([rows[here], *(column[here] for column in more)])
            part = part.astype(within, copy=False)
            columns += part.sum(axis=0)
            products += part.T @ part
        return cls(columns, products)

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
