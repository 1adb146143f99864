"""The robust rules written out, one loop a definition, in plain Python."""

from collections.abc import Sequence

import numpy as np


def median_slowly(rows: np.ndarray) -> np.ndarray:
    """Return the middle of each column."""
    found = []
    for column in rows.astype(np.float64).T:
        ordered = sorted(column)
        half = len(ordered) // 2
        found.append(ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2)
    return np.array(found)


def trimmed_mean_slowly(rows: np.ndarray, cut: int) -> np.ndarray:
    """Return the mean of each column without its `cut` least and greatest."""
    columns = [sorted(column)[cut : len(column) - cut] for column in rows.astype(np.float64).T]
    return np.array([sum(kept) / len(kept) for kept in columns])


def krum_order_slowly(rows: np.ndarray, bad: int) -> list[int]:
    """Return the rows' numbers by the sum of squared distances to their n - f - 2 nearest others."""
    scores = []
    for i, one in enumerate(rows.astype(np.float64)):
        others: Sequence[float] = sorted(
            float(((one - other) ** 2).sum()) for j, other in enumerate(rows.astype(np.float64)) if j != i
        )
        scores.append(sum(others[: max(1, len(rows) - bad - 2)]))
    return sorted(range(len(rows)), key=lambda i: (scores[i], i))
