"""The k best of many scores, best first, with everything that ties with the last of them."""

import numpy as np

from common.compiled import compiled

MOST_INSERTED = 100
"""Up to so many are found by insertion in one pass, more by sorting."""


def best_rows(scores: np.ndarray, barred: np.ndarray, k: int) -> tuple[list[int], list[float], bool]:
    """Return the rows that score at least what the k-th best does, best first, their scores, and whether any are equal.

    More than k where others score as the k-th does, all where there are no more, and none that scores NaN.

    Parameters
    ----------
    scores
        float32 [n].
    barred
        Rows that must not be among them, int64.
    k
        1 or more.
    """
    if k <= MOST_INSERTED:
        rows, values, tied = _inserted(scores, barred, k)
    else:
        rows, values, tied = _sorted(scores, barred, k)
    return rows.tolist(), values.tolist(), tied


def _sorted(scores: np.ndarray, barred: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, bool]:
    open_rows = np.ones(len(scores), dtype=bool)
    open_rows[barred] = False
    rows = np.flatnonzero(open_rows & ~np.isnan(scores))
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    values = scores[rows]
    if len(rows) > k:
        rows, values = rows[values >= values[k - 1]], values[values >= values[k - 1]]
    return rows, values, bool((values[1:] == values[:-1]).any())


@compiled
def _inserted(scores: np.ndarray, barred: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, bool]:
    shut = np.zeros(len(scores), dtype=np.bool_)
    for row in barred:
        shut[row] = True
    rows = np.empty(k, dtype=np.int64)
    values = np.empty(k, dtype=np.float32)
    none = np.float32(-np.inf)
    count, least, crowded = 0, none, False
    for row in range(len(scores)):
        value = scores[row]
        # nearly all fall here; NaN does not
        if value < least or shut[row] or np.isnan(value):
            continue
        if count == k and value == least:
            crowded = True
            continue
        pushed = values[k - 1]
        place = min(count, k - 1)
        while place > 0 and value > values[place - 1]:
            values[place], rows[place] = values[place - 1], rows[place - 1]
            place -= 1
        values[place], rows[place] = value, row
        # what falls out ties with the last, or nothing does any more
        crowded = count == k and pushed == values[k - 1]
        count = min(count + 1, k)
        least = values[k - 1] if count == k else none
    tied = crowded
    for place in range(1, count):
        tied = tied or values[place] == values[place - 1]
    if not crowded:
        return rows[:count], values[:count], tied
    # of equal ones the earliest were kept, so those left out come after the last kept
    others = np.empty(len(scores) - rows[k - 1], dtype=np.int64)
    total = 0
    for row in range(rows[k - 1] + 1, len(scores)):
        if not shut[row] and scores[row] == least:
            others[total] = row
            total += 1
    rows = np.concatenate((rows, others[:total]))
    return rows, scores[rows], True
