"""Sums over all items, taken once a snapshot: mean and spread of a product follow from them without going through it.

For items with rows q and biases b, and a user's factors u: ``sum_k (b_k + q_k . u)`` is ``sum b + (sum q) . u``, and
the sum of the squares is ``sum b^2 + 2 u . (sum b q) + u' (sum q q') u``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

_ROWS = 8_192


@dataclass(frozen=True, slots=True)
class ItemSums:
    """What a snapshot's item arrays add up to.

    Parameters
    ----------
    rows
        Sum of the rows, float64 [d].
    products
        Sum of the rows' products with themselves, float64 [d, d].
    biased
        Sum of the rows, each times its bias, float64 [d].
    bias, popularity
        Sum, and sum of squares, float64 [2].
    """

    rows: np.ndarray
    products: np.ndarray
    biased: np.ndarray
    bias: np.ndarray
    popularity: np.ndarray

    @classmethod
    def of(cls, factors: np.ndarray, bias: np.ndarray, popularity: np.ndarray) -> "ItemSums":
        """Add up float32 [n, d], [n] and [n]."""
        width = factors.shape[1]
        rows, products, biased = np.zeros(width), np.zeros((width, width)), np.zeros(width)
        for start in range(0, len(factors), _ROWS):
            part = factors[start : start + _ROWS].astype(np.float64)
            rows += part.sum(axis=0)
            products += part.T @ part
            biased += bias[start : start + _ROWS].astype(np.float64) @ part
        return cls(rows, products, biased, _two_of(bias), _two_of(popularity))

    def of_product(self, weights: np.ndarray, *, biased: bool = False) -> tuple[float, float]:
        """Return sum and sum of squares of the rows times weights, float [d], plus their biases on request."""
        u = weights.astype(np.float64)
        total, squares = float(self.rows @ u), float(u @ self.products @ u)
        if biased:
            total += float(self.bias[0])
            squares += float(self.bias[1] + 2.0 * (self.biased @ u))
        return total, squares

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "ItemSums":
        """Return what `arrays` was asked of."""
        return cls(**{field.name: arrays[field.name] for field in fields(cls)})


def _two_of(values: np.ndarray) -> np.ndarray:
    exact = values.astype(np.float64)
    return np.array([exact.sum(), exact @ exact])
