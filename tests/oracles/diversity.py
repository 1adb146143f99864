"""Maximal marginal relevance, by its definition."""

import numpy as np


def mmr_slowly(relevance: np.ndarray, vectors: np.ndarray, k: int, diversity: float) -> list[int]:
    """Return the places of k rows, each the best of what is left."""
    low, high = min(relevance), max(relevance)
    worth = [(r - low) / (high - low) if high > low else 1.0 for r in relevance]
    chosen: list[int] = []
    for _ in range(min(k, len(relevance))):
        best, most = -1, -np.inf
        for row in range(len(relevance)):
            if row in chosen:
                continue
            value = worth[row]
            if chosen:
                nearest = max(float(np.float32(vectors[row] @ vectors[other])) for other in chosen)
                value = (1 - diversity) * worth[row] - diversity * nearest
            if value > most:
                best, most = row, value
        chosen.append(best)
    return chosen
