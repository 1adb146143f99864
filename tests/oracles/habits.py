"""What `stream.learner.habit` keeps and learns, once more: lists of likes, and slopes by differences."""

import math
from collections.abc import Sequence

import numpy as np

GAP = 30 * 60 * 1000


def visits_of(times: Sequence[int]) -> list[int]:
    """Return the number of the visit of each like of one user: another one after more than half an hour."""
    numbers = [0] * len(times)
    for place in range(1, len(times)):
        numbers[place] = numbers[place - 1] + (times[place] - max(times[:place]) > GAP)
    return numbers


def kinds_of(items: Sequence[str], times: Sequence[int], at: int | None = None) -> dict[str, int]:
    """Return the kind of each item that one user liked, asked for at a time, or None for not long after."""
    numbers = visits_of(times)
    now = visits_of([*times, max(times) if at is None else at])[-1]
    found = {}
    for item in set(items):
        among = sorted({number for number, other in zip(numbers, items, strict=True) if other == item})
        ago = now - among[-1]
        age = next(place for place, most in enumerate((0, 1, 2, 4, 8, math.inf)) if ago <= most)
        found[item] = 5 * age + min(len(among), 5) - 1
    return found


def moved_worth(
    base: np.ndarray, kinds: Sequence[int | None], item: int, worth: np.ndarray, sums: np.ndarray, rate: float, q: float
) -> np.ndarray:
    """Return what kinds are worth after an AdaGrad step on ``(1 - p ** q) / q``, ``-log(p)`` for 0; `base` has none."""

    def loss(at: np.ndarray) -> float:
        scores = base + np.array([0.0 if kind is None else at[kind] for kind in kinds])
        chance = math.exp(scores[item]) / np.exp(scores).sum()
        return float((1 - chance**q) / q if q else -math.log(chance))

    by = 1e-6
    steps = np.eye(len(worth)) * by
    slopes = np.array([(loss(worth + step) - loss(worth - step)) / (2 * by) for step in steps])
    return np.asarray(worth - rate * slopes / np.sqrt(sums + slopes**2))
