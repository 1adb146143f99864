"""The obvious top k."""

import numpy as np


def best_slowly(scores: np.ndarray, eligible: np.ndarray, k: int) -> list[int]:
    """Sort all eligible rows by falling score, ties by row."""
    rows = [row for row in range(len(scores)) if eligible[row]]
    return sorted(rows, key=lambda row: (-scores[row], row))[:k]
