"""The learner of `stream.learner.mf`, once more: plain Python and float64, one formula a line."""

from collections import defaultdict

import numpy as np

from common.ids import rng_for, stable_hash

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(state: int) -> int:
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


class FoldedMF:
    """What `MF` does, slowly."""

    def __init__(
        self,
        n_factors: int,
        negatives: int,
        window: int,
        recency: float,
        lr: float,
        bias_lr: float,
        accumulator: float,
        dislike: float,
        seed: int,
        rate_floor: float = 0.0,
    ) -> None:
        self.rate_floor = rate_floor
        self.n_factors, self.negatives, self.window, self.recency = n_factors, negatives, window, recency
        self.lr, self.bias_lr, self.accumulator, self.dislike, self.seed = lr, bias_lr, accumulator, dislike, seed
        self.items: list[str] = []
        self.history_rows: dict[str, np.ndarray] = {}
        self.rows: dict[str, np.ndarray] = {}
        self.bias: dict[str, float] = {}
        self.sums: dict[tuple[str, str], float] = {}
        self.liked: dict[str, list[str]] = defaultdict(list)
        self.events = 0

    def add(self, item: str) -> None:
        if item in self.rows:
            return
        self.items.append(item)
        drawn = rng_for(self.seed, "mf-item", item).standard_normal((2, self.n_factors)) / np.sqrt(self.n_factors)
        self.history_rows[item], self.rows[item] = drawn[0].copy(), drawn[1].copy()
        self.bias[item] = 0.0
        for kind in ("history", "row", "bias"):
            self.sums[kind, item] = self.accumulator

    def folded(self, user: str) -> tuple[np.ndarray, list[tuple[str, float]]]:
        newest = list(reversed(self.liked.get(user, [])))[: self.window]
        weights = [np.exp(-age / self.recency) for age in range(len(newest))]
        shares = [(item, weight / np.sqrt(sum(weights))) for item, weight in zip(newest, weights, strict=True)]
        vector = np.zeros(self.n_factors)
        for item, share in shares:
            vector = vector + share * self.history_rows[item]
        return vector, shares

    def score(self, user: str, item: str) -> float:
        return float(self.bias[item] + self.folded(user)[0] @ self.rows[item])

    def drawn(self, user: str, item: str) -> list[str]:
        seen = set(self.liked.get(user, []))
        state = mix((stable_hash(self.seed, "mf-negatives") + (self.events + 1) * GOLDEN) & MASK)
        found: list[str] = []
        for _ in range(4 * self.negatives):
            if len(found) == self.negatives:
                break
            state = (state + GOLDEN) & MASK
            candidate = self.items[mix(state) % len(self.items)]
            if candidate != item and candidate not in seen:
                found.append(candidate)
        return found

    def _share(self, kind: str, item: str, gradient: float) -> float:
        self.sums[kind, item] += gradient**2
        return max(float(1 / np.sqrt(self.sums[kind, item])), self.rate_floor / max(1.0, abs(gradient)))

    def _step(self, item: str, slope: float, user: np.ndarray) -> None:
        self.bias[item] -= self.bias_lr * self._share("bias", item, slope) * slope
        if user @ user > 0:
            share = self._share("row", item, slope * float(np.linalg.norm(user)))
            self.rows[item] = self.rows[item] - self.lr * share * slope * user

    def learn(self, user: str, item: str, weight: float) -> None:
        self.add(item)
        vector, shares = self.folded(user)
        if weight < 0:
            score = self.bias[item] + vector @ self.rows[item]
            self._step(item, -weight * self.dislike / (1 + np.exp(-score)), vector)
        else:
            negatives = self.drawn(user, item)
            if negatives:
                self._softmax(item, negatives, vector, shares, weight)
            self.liked[user].append(item)
        self.events += 1

    def _softmax(
        self, item: str, negatives: list[str], vector: np.ndarray, shares: list[tuple[str, float]], weight: float
    ) -> None:
        drawn = [item, *negatives]
        exponentials = np.exp([self.bias[one] + vector @ self.rows[one] for one in drawn])
        slopes = exponentials / exponentials.sum()
        slopes[0] -= 1.0
        pull = np.zeros(self.n_factors)
        for one, slope in zip(drawn, weight * slopes, strict=True):
            pull = pull + slope * self.rows[one]
            self._step(one, float(slope), vector)
        for one, share in shares:
            step = self.lr * self._share("history", one, share * float(np.linalg.norm(pull))) * share
            self.history_rows[one] = self.history_rows[one] - step * pull
