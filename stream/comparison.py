"""Figures from the ranks of a contest: rows, slices, windows, and who is better by more than luck."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stream.contest import Trial
from stream.progressive import clustered_interval

CRITICAL = 6.634897
"""Of chi square with one degree of freedom, at 1 per cent."""
HISTORIES = ((0, 0), (1, 5), (6, 20), (21, None))
COUNTS = ((0, 0), (1, 5), (6, 50), (51, None))


@dataclass(frozen=True, slots=True)
class Figures:
    """Means over some tests, each at k; None in `as_json` where there was none.

    Parameters
    ----------
    tests
        How many.
    recall, ndcg, mrr
        With one relevant item, recall is the hit rate.
    ci95
        Interval of the recall, clustered by user.
    """

    tests: int
    recall: float
    ndcg: float
    mrr: float
    ci95: tuple[float, float]

    def as_json(self, k: int) -> dict[str, Any]:
        """Return the figures with the keys of the reports."""
        some = self.tests > 0
        return {
            f"recall@{k}": self.recall if some else None,
            f"ndcg@{k}": self.ndcg if some else None,
            f"mrr@{k}": self.mrr if some else None,
            "ci95": list(self.ci95) if some else None,
            "evaluated": self.tests,
        }


def figures_of(ranks: np.ndarray, user: np.ndarray, k: int) -> Figures:
    """Return the figures of some tests.

    Parameters
    ----------
    ranks, user
        int [e].
    k
        Length of the lists.
    """
    if not len(ranks):
        return Figures(0, 0.0, 0.0, 0.0, (0.0, 1.0))
    hit = ranks <= k
    gain = np.where(hit, 1.0 / np.log2(ranks + 1.0), 0.0)
    reciprocal = np.where(hit, 1.0 / ranks, 0.0)
    _, place = np.unique(user, return_inverse=True)
    interval = clustered_interval(np.bincount(place, weights=hit), np.bincount(place))
    return Figures(len(ranks), float(hit.mean()), float(gain.mean()), float(reciprocal.mean()), interval)


def gini(exposures: np.ndarray) -> float:
    """Return how unequally the lists show the candidates: 0 all alike, towards 1 a few only.

    Parameters
    ----------
    exposures
        How often each candidate was in a list, int64 [n].
    """
    ordered, total = np.sort(exposures).astype(np.float64), float(exposures.sum())
    if not total:
        return 0.0
    places = np.arange(1, len(ordered) + 1)
    return float((2.0 * places - len(ordered) - 1.0) @ ordered / (len(ordered) * total))


def row_of(trial: Trial, name: str) -> dict[str, Any]:
    """Return one contender's row: figures, coverage, Gini, cost."""
    exposures = trial.exposures[name]
    return {
        **figures_of(trial.ranks[name], trial.user, trial.k).as_json(trial.k),
        "coverage": float((exposures > 0).mean()),
        "gini": gini(exposures),
        "answer_us": trial.answer_us[name],
        "learn_us": trial.learn_us[name],
        "us_per_event": trial.answer_us[name] + trial.learn_us[name],
    }


def slices_of(trial: Trial, name: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Return one contender's figures by how much was known of the user, of the item, and by the place in a basket."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for kind, known, bounds in (("user_history", trial.history, HISTORIES), ("item_history", trial.count, COUNTS)):
        found[kind] = {}
        for low, high in bounds:
            taken = (known >= low) & (known <= (high if high is not None else known.max(initial=0)))
            part = figures_of(trial.ranks[name][taken], trial.user[taken], trial.k)
            found[kind][range_name(low, high)] = part.as_json(trial.k)
    found["moment"] = {}
    for name_of, taken in (("first", ~trial.inside), ("further", trial.inside)):
        part = figures_of(trial.ranks[name][taken], trial.user[taken], trial.k)
        found["moment"][name_of] = part.as_json(trial.k)
    return found


def range_name(low: int, high: int | None) -> str:
    """Return "0", "1-5" or "21+"."""
    return f"{low}+" if high is None else str(low) if low == high else f"{low}-{high}"


def windows_of(tests: int, width: int) -> list[slice]:
    """Return windows of `width` tests, each half a window after the one before; a short stream is one window."""
    width = min(width, tests)
    step = max(1, width // 2)
    return [slice(start, start + width) for start in range(0, tests - width + 1, step)]


@dataclass(frozen=True, slots=True)
class McNemar:
    """How two contenders compare, window by window.

    Parameters
    ----------
    statistic
        ``sign(b - c) (b - c)^2 / (b + c)`` in each window, float64 [w]; b counts the tests that only the first hit, c
        those that only the second did.
    """

    statistic: np.ndarray

    @property
    def better(self) -> int:
        """In how many windows the first is better, at 1 per cent."""
        return int((self.statistic > CRITICAL).sum())

    @property
    def worse(self) -> int:
        """In how many windows the first is worse, at 1 per cent."""
        return int((self.statistic < -CRITICAL).sum())

    def as_json(self) -> dict[str, Any]:
        """Return the counts and the statistics."""
        told = [round(float(value), 2) for value in self.statistic]
        return {"windows": len(told), "better": self.better, "worse": self.worse, "statistic": told}


def mcnemar(trial: Trial, first: str, second: str, width: int = 2000) -> McNemar:
    """Compare two contenders in sliding windows (Gama, Sebastião, Rodrigues 2013, after McNemar 1947)."""
    one, two = trial.ranks[first] <= trial.k, trial.ranks[second] <= trial.k
    values = []
    for window in windows_of(len(one), width):
        only_first = int((one[window] & ~two[window]).sum())
        only_second = int((two[window] & ~one[window]).sum())
        apart, both = only_first - only_second, only_first + only_second
        values.append(float(np.sign(apart)) * apart**2 / both if both else 0.0)
    return McNemar(np.array(values, dtype=np.float64))


def paired_interval(trial: Trial, first: str, second: str) -> tuple[float, tuple[float, float]]:
    """Return the difference in recall and its 95% interval, users being independent and their tests not."""
    difference = (trial.ranks[first] <= trial.k).astype(np.float64) - (trial.ranks[second] <= trial.k)
    _, place = np.unique(trial.user, return_inverse=True)
    sums, sizes = np.bincount(place, weights=difference), np.bincount(place)
    mean, users = float(difference.mean()), len(sums)
    if users < 2:
        return mean, (-1.0, 1.0)
    residual = sums - mean * sizes
    half = 1.959964 * float(np.sqrt(residual @ residual * users / (users - 1))) / len(difference)
    return mean, (mean - half, mean + half)


def curve_of(trial: Trial, name: str, points: int = 20) -> list[dict[str, float]]:
    """Return the recall in each of so many equal stretches of the tests, with the test in its middle."""
    hits = trial.ranks[name] <= trial.k
    parts = np.array_split(np.arange(len(hits)), min(points, len(hits)))
    return [{"test": float(part.mean()), "recall": float(hits[part].mean())} for part in parts]


def against(trial: Trial, first: str, names: Mapping[str, object] | list[str], width: int = 2000) -> dict[str, Any]:
    """Return, for each of `names`, the paired difference to `first` and the sliding McNemar test."""
    told: dict[str, Any] = {}
    for name in names:
        mean, interval = paired_interval(trial, first, name)
        told[name] = {
            "difference": mean,
            "ci95": list(interval),
            "mcnemar": mcnemar(trial, first, name, width).as_json(),
        }
    return told
