"""Tables of pairs added up, pair by pair."""

import numpy as np

from common.compiled import compiled
from stream.learner.kernels import GOLDEN, mix
from stream.learner.neighbours import _PROBES, scale_of


@compiled
def add_pairs(other: np.ndarray, weight: np.ndarray, rows: np.ndarray, others: np.ndarray, amounts: np.ndarray) -> None:
    """Add amounts, of either sign, to the pairs of a table as `stream.learner.neighbours.Pairs` has them.

    A pair that is not there takes a free one of its places, or that of the lightest pair there if that is lighter.

    Parameters
    ----------
    other, weight
        int32 and float32 [n, places]; changed.
    rows, others, amounts
        int64 and int64 rows of the two items, float32 [pairs].
    """
    places = other.shape[1]
    for pair in range(len(rows)):
        row, key, amount = rows[pair], others[pair] + 1, amounts[pair]
        start = np.int64(mix(np.uint64(key) * GOLDEN) % np.uint64(places))
        lightest, least, done = -1, amount, False
        for step in range(_PROBES):
            place = (start + step) % places
            held = other[row, place]
            if held == key:
                weight[row, place] += amount
                done = True
                break
            if held == 0:
                if lightest < 0 or other[row, lightest] != 0:
                    lightest, least = place, np.float32(-np.inf)
            elif weight[row, place] < least:
                lightest, least = place, weight[row, place]
        if not done and lightest >= 0:
            other[row, lightest] = key
            weight[row, lightest] = amount


@compiled
def scales_of(counts: np.ndarray, beta: float) -> np.ndarray:
    """Return `scale_of` of each count, float32."""
    scales = np.empty(len(counts), dtype=np.float32)
    for row in range(len(counts)):
        scales[row] = scale_of(counts[row], np.float32(beta))
    return scales
