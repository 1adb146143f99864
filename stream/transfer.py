"""Figures of an examination: the matrix, and what can be read off it, with intervals over users."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stream.comparison import figures_of, gini
from stream.forgetting import Examination

MEASURES = ("average", "plasticity", "backward", "forward")


@dataclass(frozen=True, slots=True)
class Measure:
    """A value with its 95% interval, users being independent and their questions not."""

    value: float
    ci95: tuple[float, float]

    def as_json(self) -> dict[str, Any]:
        """Return value and interval."""
        return {"value": self.value, "ci95": list(self.ci95)}


def matrix_of(examination: Examination, name: str) -> np.ndarray:
    """Return the recall on window j after training up to window i, float64 [w + 1, w]; row 0 is before the first."""
    hits = examination.ranks[name] <= examination.k
    windows = hits.shape[0] - 1
    return np.stack([hits[:, examination.window == window].mean(axis=1) for window in range(windows)], axis=1)


def coefficients(windows: int) -> dict[str, np.ndarray]:
    r"""Return what each measure weighs the matrix with, float64 [w + 1, w] each.

    With R the matrix, rows from 0 (before the first window) to w and columns from 1 to w:

    - average: $\frac{1}{w} \sum_j R_{w j}$;
    - plasticity: $\frac{1}{w} \sum_j R_{j j}$, what was just learned;
    - backward transfer: $\frac{1}{w - 1} \sum_{j < w} R_{w j} - R_{j j}$; below 0 is forgetting;
    - forward transfer: $\frac{1}{w - 1} \sum_{j > 1} R_{j - 1, j} - R_{0 j}$, over what the untrained one has.

    References
    ----------
    Lopez-Paz, Ranzato: Gradient episodic memory for continual learning. NeurIPS 2017, arXiv 1706.08840, equations 2-4.
    """
    found = {name: np.zeros((windows + 1, windows)) for name in MEASURES}
    own = np.arange(windows)
    found["average"][windows] = 1.0 / windows
    found["plasticity"][own + 1, own] = 1.0 / windows
    found["backward"][windows, :-1] = 1.0 / (windows - 1)
    found["backward"][own[:-1] + 1, own[:-1]] = -1.0 / (windows - 1)
    found["forward"][own[1:], own[1:]] = 1.0 / (windows - 1)
    found["forward"][0, 1:] = -1.0 / (windows - 1)
    return found


def weighed(examination: Examination, values: np.ndarray, weights: np.ndarray) -> Measure:
    """Return a weighted sum of the cells' means.

    Parameters
    ----------
    examination
        Whose questions they are.
    values
        Of each question after each window, any numeric dtype [w + 1, e].
    weights
        Of the cells, float64 [w + 1, w].
    """
    window = examination.window
    sizes = np.bincount(window, minlength=weights.shape[1])
    each = (weights[:, window] * values).sum(axis=0) / sizes[window]
    means = np.bincount(window, weights=each, minlength=weights.shape[1]) / sizes
    _, user = np.unique(examination.user, return_inverse=True)
    sums = np.bincount(user, weights=each - means[window])
    value, users = float(each.sum()), len(sums)
    if users < 2:
        return Measure(value, (-1.0, 1.0))
    half = 1.959964 * float(np.sqrt(sums @ sums * users / (users - 1)))
    return Measure(value, (value - half, value + half))


def forgetting_of(matrix: np.ndarray) -> float:
    """Return how far windows but the last fell from their best, on average (Chaudhry et al. 2018, ECCV, equation 2)."""
    past = matrix[1:-1, :-1]
    return float((past.max(axis=0) - matrix[-1, :-1]).mean())


def row_of(examination: Examination, name: str) -> dict[str, Any]:
    """Return one student's row: figures over all windows after the last, the matrix, and the measures."""
    ranks, exposures = examination.ranks[name], examination.exposures[name]
    hits, matrix = ranks <= examination.k, matrix_of(examination, name)
    measures = {
        kind: weighed(examination, hits, weights).as_json() for kind, weights in coefficients(matrix.shape[1]).items()
    }
    return {
        **figures_of(ranks[-1], examination.user, examination.k).as_json(examination.k),
        "coverage": float((exposures > 0).mean()),
        "gini": gini(exposures),
        "us_per_event": examination.us_per_event[name],
        "untrained": matrix[0].tolist(),
        "matrix": matrix[1:].tolist(),
        **measures,
        "forgetting": forgetting_of(matrix),
    }


def differences(examination: Examination, first: str) -> Mapping[str, Mapping[str, Any]]:
    """Return, for each other student and measure, the paired difference of the first to it."""
    mine = (examination.ranks[first] <= examination.k).astype(np.int8)
    weights = coefficients(mine.shape[0] - 1)
    return {
        name: {
            kind: weighed(examination, mine - (ranks <= examination.k), each).as_json()
            for kind, each in weights.items()
        }
        for name, ranks in examination.ranks.items()
        if name != first
    }
