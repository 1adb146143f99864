"""A slate whose items are less alike: maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998)."""

import numpy as np

POOL = 5
"""Diversity chooses among so many times k of the best items, ..."""
LEAST_POOL = 100
"""... and among no fewer than this."""


def pool_size(k: int) -> int:
    """Return how many of the best items a slate of k is chosen from."""
    return max(LEAST_POOL, POOL * k)


def spread_out(relevance: np.ndarray, vectors: np.ndarray, k: int, diversity: float) -> np.ndarray:
    """Return the places of k rows, each the one with the most of ``(1 - diversity) r - diversity s`` left.

    r is the relevance brought to 0..1 over all rows, s the largest cosine with a row that is chosen already (0 before
    the first). Ties go to the row that comes first.

    Parameters
    ----------
    relevance
        float64 [n].
    vectors
        Unit rows, float32 [n, d].
    k
        At most so many.
    diversity
        0 keeps the order of relevance, 1 asks for nothing but difference after the first.
    """
    chosen: list[int] = []
    if not len(relevance):
        return np.empty(0, dtype=np.int64)
    low, high = float(relevance.min()), float(relevance.max())
    scaled = (relevance - low) / (high - low) if high > low else np.ones(len(relevance))
    nearest = np.zeros(len(relevance))
    left = np.ones(len(relevance), dtype=bool)
    while len(chosen) < min(k, len(relevance)):
        if chosen:
            alike = (vectors @ vectors[chosen[-1]]).astype(np.float64)
            nearest = alike if len(chosen) == 1 else np.maximum(nearest, alike)
        # the first is the most relevant one whatever the weight: there is nothing yet to differ from
        worth = (1.0 - diversity) * scaled - diversity * nearest if chosen else scaled
        chosen.append(int(np.argmax(np.where(left, worth, -np.inf))))
        left[chosen[-1]] = False
    return np.array(chosen, dtype=np.int64)
