"""The members and the blend of `stream.learner`, once more: dictionaries and float64, one formula a line."""

import math
from collections import defaultdict

import numpy as np


class PlainNeighbours:
    """What `Neighbours` does while no pair loses its place, slowly."""

    def __init__(self, window: int, gap: float, recency: float, alpha: float, beta: float, dislike: float) -> None:
        self.window, self.gap, self.recency = window, gap, recency
        self.alpha, self.beta, self.dislike = alpha, beta, dislike
        self.pairs: dict[tuple[str, str], float] = {}
        self.counts: dict[str, int] = defaultdict(int)
        self.liked: dict[str, list[str]] = defaultdict(list)

    def learn(self, user: str, item: str, weight: float) -> None:
        newest = list(reversed(self.liked.get(user, [])))[: self.window]
        for age, other in enumerate(newest):
            amount = abs(weight) * math.exp(-age / self.gap)
            if other == item:
                continue
            if weight > 0:
                self.pairs[other, item] = self.pairs.get((other, item), 0.0) + amount
                self.pairs[item, other] = self.pairs.get((item, other), 0.0) + amount
            elif (other, item) in self.pairs:
                self.pairs[other, item] = max(0.0, self.pairs[other, item] - self.dislike * amount)
        if weight > 0:
            self.liked[user].append(item)
            self.counts[item] += 1

    def score(self, user: str, item: str) -> float:
        total = 0.0
        for age, other in enumerate(list(reversed(self.liked.get(user, [])))[: self.window]):
            if age < math.ceil(6 * self.recency):
                asker = self.counts[other] ** self.alpha + 1
                total += math.exp(-age / self.recency) / asker * self.pairs.get((other, item), 0.0)
        return float(total / (self.counts[item] ** self.beta + 1))


def mixed(raw: np.ndarray, shown: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the z-scores over what is shown, float64 [members, n], and their weighted sum."""
    z = np.zeros_like(raw, dtype=np.float64)
    for member, values in enumerate(raw.astype(np.float64)):
        if not shown.any():
            continue
        spread = values[shown].std()
        if spread > 1e-6 * max(1.0, abs(values[shown].mean())):
            z[member] = (values - values[shown].mean()) / spread
    return z, weights @ z


def moved(
    z: np.ndarray, shown: np.ndarray, item: int, weights: np.ndarray, rate: float, focus: float, by: float = 1e-6
) -> np.ndarray:
    """Return the weights after one step on ``(1 - p ** focus) / focus``, its slope by differences."""

    def loss(at: np.ndarray) -> float:
        scores = at @ z
        chance = math.exp(scores[item]) / np.exp(scores[shown]).sum()
        return float((1 - chance**focus) / focus)

    steps = np.eye(len(weights)) * by
    slopes = np.array([(loss(weights + step) - loss(weights - step)) / (2 * by) for step in steps])
    return np.maximum(0.0, weights - rate * slopes)


def fading_mass(likes: list[tuple[int, float]], now: int, half_life: float) -> float:
    """Return what is left at `now` of amounts given at events, never below 0 on the way."""
    left, before = 0.0, 0
    for event, amount in likes:
        left = max(0.0, left * 0.5 ** ((event - before) / half_life) + amount)
        before = event
    return float(left * 0.5 ** ((now - before) / half_life))
