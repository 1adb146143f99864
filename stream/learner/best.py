"""The k best of many scores, with everything that ties with the last of them."""

import numpy as np

from stream.learner.kernels import compiled

MOST_INSERTED = 100
"""Up to so many are found by insertion in one pass, more by partition."""


def best_rows(scores: np.ndarray, allowed: np.ndarray, k: int) -> np.ndarray:
    """Return the allowed rows, int64 and rising, that score at least what the k-th best of them does.

    More than k where scores are equal, all where there are no more, and none that scores NaN.

    Parameters
    ----------
    scores, allowed
        float32 [n] and bool [n].
    k
        1 or more.
    """
    if k <= MOST_INSERTED:
        found: np.ndarray = _inserted(scores, allowed, k)
        return found
    rows = np.flatnonzero(allowed & ~np.isnan(scores))
    kept = scores[rows]
    return rows if len(rows) <= k else rows[kept >= np.partition(kept, len(kept) - k)[len(kept) - k]]


@compiled
def _inserted(scores: np.ndarray, allowed: np.ndarray, k: int) -> np.ndarray:
    values = np.full(k, -np.inf, dtype=np.float32)
    for row in range(len(scores)):
        value = scores[row]
        if allowed[row] and value > values[k - 1]:
            place = k - 1
            while place > 0 and value > values[place - 1]:
                values[place] = values[place - 1]
                place -= 1
            values[place] = value
    count = 0
    rows = np.empty(len(scores), dtype=np.int64)
    for row in range(len(scores)):
        if allowed[row] and scores[row] >= values[k - 1]:
            rows[count] = row
            count += 1
    return rows[:count]
