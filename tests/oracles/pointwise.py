"""The learner of `stream.learner.pointwise`, once more: dictionaries and float64, one formula a line."""

from collections import defaultdict

import numpy as np

from common.ids import rng_for, stable_hash
from tests.oracles.folded_mf import GOLDEN, MASK, mix


class PlainPointwise:
    """What `PointwiseMF` does, slowly."""

    def __init__(
        self,
        n_factors: int,
        lr: float,
        bias_lr: float,
        l2: float,
        bias_l2: float,
        clip: float,
        init_scale: float,
        negatives: int,
        seed: int,
    ) -> None:
        self.n_factors, self.lr, self.bias_lr, self.l2, self.bias_l2 = n_factors, lr, bias_lr, l2, bias_l2
        self.clip, self.init_scale, self.negatives, self.seed = clip, init_scale, negatives, seed
        self.values: list[float] = []
        self.rows: dict[tuple[str, str], np.ndarray] = {}
        self.bias: dict[tuple[str, str], float] = {}
        self.items: list[str] = []
        self.liked: dict[str, set[str]] = defaultdict(set)
        self.events = 0

    def _add(self, kind: str, name: str) -> None:
        if (kind, name) not in self.rows:
            drawn = rng_for(self.seed, f"pointwise-{kind}", name).standard_normal(self.n_factors)
            self.rows[kind, name], self.bias[kind, name] = drawn * self.init_scale, 0.0
            if kind == "item":
                self.items.append(name)

    def score(self, user: str, item: str) -> float:
        u, k = ("user", user), ("item", item)
        return float(np.mean(self.values) + self.bias[u] + self.bias[k] + self.rows[u] @ self.rows[k])

    def _step(self, user: str, item: str, y: float) -> None:
        self.values.append(y)
        u, k = ("user", user), ("item", item)
        slope = float(np.clip(2 * (self.score(user, item) - y), -self.clip, self.clip))
        p, q = self.rows[u], self.rows[k]
        for one in (u, k):
            self.bias[one] -= self.bias_lr * (slope + self.bias_l2 * self.bias[one])
        self.rows[u] = np.clip(p - self.lr * (slope * q + self.l2 * p), -100, 100)
        self.rows[k] = np.clip(q - self.lr * (slope * p + self.l2 * q), -100, 100)

    def _drawn(self, user: str, item: str) -> list[str]:
        state = mix((stable_hash(self.seed, "pointwise-negatives") + (self.events + 1) * GOLDEN) & MASK)
        found: list[str] = []
        for _ in range(4 * self.negatives):
            if len(found) == self.negatives:
                break
            state = (state + GOLDEN) & MASK
            candidate = self.items[mix(state) % len(self.items)]
            if candidate != item and candidate not in self.liked[user]:
                found.append(candidate)
        return found

    def learn(self, user: str, item: str, y: float) -> None:
        self._add("user", user)
        self._add("item", item)
        self._step(user, item, y)
        if y > 0:
            for other in self._drawn(user, item):
                self._step(user, other, 0.0)
            self.liked[user].add(item)
        self.events += 1
