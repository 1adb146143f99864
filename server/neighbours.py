"""Item-kNN, the control that a text model has to beat: people who clicked this clicked that.

Fitted on the training part, the history live like every other row's. A pair of a user's clicks counts
``exp(-gap / gap_decay)`` for items that far apart in the user's order; an item's score is the sum over the history, the
newest weighing most, of ``exp(-age / age_decay) C[j, k] / sqrt(C[j, j] C[k, k])``.
"""

from collections.abc import Sequence

import numpy as np

from server.evaluate import HISTORY, Scorer, TestEvents

MOST_ITEMS = 12_000
"""Candidates beyond which the square matrix is not made: 12,000 are 0.6 GB."""


def fit_neighbours(
    train: Sequence[tuple[str, int]], candidates: np.ndarray, *, gap_decay: float | None = None
) -> np.ndarray:
    """Return the similarity of each pair of candidates, float32 [c, c], 0 on the diagonal.

    Parameters
    ----------
    train
        (user, item row) clicks in time order; repeats of an item count once, where it was clicked first.
    candidates
        Item rows, int64 [c], sorted.
    gap_decay
        How fast a pair fades with the clicks between; None counts all pairs of a user alike, which is plain cosine.
    """
    histories: dict[str, dict[int, None]] = {}
    for user, row in train:
        histories.setdefault(user, {}).setdefault(row)
    together = np.zeros((len(candidates), len(candidates)), dtype=np.float32)
    for clicked in histories.values():
        places = np.searchsorted(candidates, np.fromiter(clicked, dtype=np.int64))
        age = np.arange(len(places))
        gaps = np.abs(age[:, None] - age[None, :])
        together[np.ix_(places, places)] += 1.0 if gap_decay is None else np.exp(-gaps / gap_decay)
    norms = np.sqrt(np.diagonal(together))
    together /= np.maximum(norms[:, None] * norms[None, :], 1e-12)
    np.fill_diagonal(together, 0.0)
    return together


def by_neighbours(events: TestEvents, similarity: np.ndarray, *, age_decay: float | None = None) -> Scorer:
    """Score by the similarity [c, c] to the history; None for `age_decay` weighs its clicks alike."""
    ages = np.arange(HISTORY, dtype=np.float32)
    weights = np.ones_like(ages) if age_decay is None else np.exp(-ages / np.float32(age_decay))

    def score(part: slice) -> np.ndarray:
        history = events.history[part]
        taken = np.zeros((len(history), len(events.candidates)), dtype=np.float32)
        places = np.searchsorted(events.candidates, np.maximum(history, events.candidates[0]))
        # an item may be in a history more than once, so the weights are added and not set
        np.add.at(taken, (np.arange(len(history))[:, None], places), (history >= 0) * weights)
        scores: np.ndarray = taken @ similarity
        return scores

    return score
