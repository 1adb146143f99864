"""What a streaming learner must be compared with: chance, river, what a user bought most, a service that retrains."""

from collections.abc import Mapping, Sequence

import numpy as np
from river import optim, reco

from common.errors import InvalidSetting
from common.events import Interaction
from common.ids import rng_for
from common.settings import Feedback


class RandomScores:
    """A new random order for every answer."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = rng_for(seed, "random-control")
        self._items = 0

    def start(self, items: Sequence[str]) -> None:
        """Take the candidates."""
        self._items = len(items)

    def scores(self, user: str, at: int | None = None) -> np.ndarray:
        """Return random numbers."""
        return self._rng.random(self._items, dtype=np.float32)

    def learn(self, event: Interaction, feedback: Feedback) -> None:
        """Learn nothing."""


class RawTexts:
    """Text vectors as the encoder gives them: likeness to the last items a user liked, the newest weighing most.

    The zero-shot row of the federated evaluation (`server.evaluate`), on a stream.

    Parameters
    ----------
    texts
        Item id to vector.
    window, recency
        How many liked items count, and how fast they fade.
    """

    def __init__(self, texts: Mapping[str, np.ndarray], window: int = 20, recency: float = 10.0) -> None:
        self._texts, self._window, self._recency = texts, window, recency
        self._liked: dict[str, list[int]] = {}

    def start(self, items: Sequence[str]) -> None:
        """Take the candidates."""
        width = len(next(iter(self._texts.values())))
        self._rows = {item: row for row, item in enumerate(items)}
        known = [self._texts.get(item, np.zeros(width)) for item in items]
        self._vectors = np.stack(known).astype(np.float32)

    def scores(self, user: str, at: int | None = None) -> np.ndarray:
        """Return the likeness to the history."""
        newest = self._liked.get(user, [])[::-1]
        weights = np.exp(-np.arange(len(newest)) / self._recency).astype(np.float32)
        scored: np.ndarray = self._vectors @ (weights @ self._vectors[newest])
        return scored

    def learn(self, event: Interaction, feedback: Feedback) -> None:
        """Remember a like."""
        if feedback.sign > 0:
            liked = self._liked.setdefault(event.user_id, [])
            liked.append(self._rows[event.item_id])
            del liked[: -self._window]


class PersonalTop:
    """What the user liked most often; of what was liked equally often, what all like most.

    Parameters
    ----------
    basket_last
        Put what was liked in the newest basket (at the time of the user's newest like) behind all else: what lies in a
        basket is hardly bought a second time.

    References
    ----------
    Li et al.: A next basket recommendation reality check. TOIS 2023 (its `GP-TopFreq`).
    """

    def __init__(self, *, basket_last: bool = False) -> None:
        self._basket_last = basket_last
        self._rows: dict[str, int] = {}
        self._before: dict[str, dict[int, int]] = {}
        self._basket: dict[str, tuple[int, dict[int, None]]] = {}

    def start(self, items: Sequence[str]) -> None:
        """Take the candidates."""
        self._rows = {item: row for row, item in enumerate(items)}
        self._likes = np.zeros(len(items), dtype=np.int64)

    def scores(self, user: str, at: int | None = None) -> np.ndarray:
        """Return how often the user liked each, and what share of the most liked one's likes it has."""
        scored: np.ndarray = (self._likes / (self._likes.max(initial=0) + 1.0)).astype(np.float32)
        for row, times in self._before.get(user, {}).items():
            scored[row] += times
        ts, basket = self._basket.get(user, (0, {}))
        for row in basket:
            scored[row] += -1e6 if self._basket_last and at in (None, ts) else 1.0
        return scored

    def learn(self, event: Interaction, feedback: Feedback) -> None:
        """Count a like; a basket counts an item once."""
        if feedback.sign <= 0:
            return
        row, (ts, basket) = self._rows[event.item_id], self._basket.get(event.user_id, (event.ts, {}))
        if ts != event.ts:
            before = self._before.setdefault(event.user_id, {})
            for each in basket:
                before[each] = before.get(each, 0) + 1
            basket = {}
        basket[row] = None
        self._basket[event.user_id] = event.ts, basket
        self._likes[row] += 1


class RiverMF:
    """river's `BiasedMF`, learned by river and read from a mirror of its rows.

    river answers one item a call (see `benchmarks/`), so after each lesson the two rows it changed are copied into
    arrays, and an answer is one product of these. An item that river has no row for yet scores by its biases.

    Parameters
    ----------
    negatives
        0: learn the value of every event (the stars of a rating), as river's own examples do. Otherwise: learn 1 for a
        liked item and 0 for so many random unseen ones, by log loss.
    n_factors
        Length of a row.
    seed
        Of river's rows and of the negatives.
    """

    def __init__(self, negatives: int = 0, n_factors: int = 10, seed: int = 0) -> None:
        if negatives < 0 or n_factors < 1:
            raise InvalidSetting(f"negatives {negatives}, n_factors {n_factors}", expected="0 or more, 1 or more")
        self._negatives, self._n_factors = negatives, n_factors
        self._rng = rng_for(seed, "river-negatives")
        if negatives:
            self._model = reco.BiasedMF(
                n_factors=n_factors,
                bias_optimizer=optim.SGD(0.05),
                latent_optimizer=optim.SGD(0.1),
                latent_initializer=optim.initializers.Normal(mu=0.0, sigma=0.1, seed=seed),
                loss=optim.losses.Log(),
                l2_bias=0.0,
                l2_latent=0.0,
                seed=seed,
            )
        else:
            # the settings of river's own MovieLens example
            self._model = reco.BiasedMF(
                n_factors=n_factors,
                bias_optimizer=optim.SGD(0.025),
                latent_optimizer=optim.SGD(0.05),
                latent_initializer=optim.initializers.Normal(mu=0.0, sigma=0.1, seed=73),
                l2_bias=0.0,
                l2_latent=0.0,
                seed=seed,
            )
        self._rows: dict[str, int] = {}
        self._names: tuple[str, ...] = ()
        self._seen: dict[str, set[int]] = {}
        self._known: set[str] = set()

    def start(self, items: Sequence[str]) -> None:
        """Take the candidates."""
        self._names = tuple(items)
        self._rows = {item: row for row, item in enumerate(items)}
        self._factors = np.zeros((len(items), self._n_factors), dtype=np.float64)
        self._bias = np.zeros(len(items), dtype=np.float64)

    def scores(self, user: str, at: int | None = None) -> np.ndarray:
        """Return the scores, without what all items have in common."""
        if user not in self._known:
            return self._bias.astype(np.float32)
        scored: np.ndarray = self._bias + self._factors @ self._model.u_latents[user]
        return scored.astype(np.float32)

    def learn(self, event: Interaction, feedback: Feedback) -> None:
        """Learn the event's value, or the like among negatives."""
        row = self._rows[event.item_id]
        if not self._negatives:
            self._teach(event.user_id, row, event.value)
            return
        if feedback.sign <= 0:
            return
        seen = self._seen.setdefault(event.user_id, set())
        seen.add(row)
        self._teach(event.user_id, row, 1.0)
        for other in self._rng.integers(len(self._names), size=self._negatives):
            if int(other) not in seen:
                self._teach(event.user_id, int(other), 0.0)

    def _teach(self, user: str, row: int, value: float) -> None:
        item = self._names[row]
        self._model.learn_one(user, item, value)
        self._known.add(user)
        self._factors[row] = self._model.i_latents[item]
        self._bias[row] = self._model.i_biases[item]


class PeriodicEase:
    """EASE, refitted on everything every so many likes; users are live in between.

    Parameters
    ----------
    every
        Likes between two fits.
    penalty
        Ridge penalty.

    References
    ----------
    Steck: Embarrassingly shallow autoencoders for sparse data. WWW 2019.
    """

    def __init__(self, every: int, penalty: float = 200.0) -> None:
        if every < 1 or not penalty > 0.0:
            raise InvalidSetting(f"every {every}, penalty {penalty}", expected="1 or more, above 0")
        self._every, self._penalty, self._likes = every, penalty, 0
        self._rows: dict[str, int] = {}
        self._seen: dict[str, dict[int, None]] = {}

    def start(self, items: Sequence[str]) -> None:
        """Take the candidates."""
        self._rows = {item: row for row, item in enumerate(items)}
        self._gram = np.zeros((len(items), len(items)), dtype=np.float32)
        self._similar = np.zeros((len(items), len(items)), dtype=np.float32)

    def scores(self, user: str, at: int | None = None) -> np.ndarray:
        """Return the sum of the similarities to all that the user liked."""
        seen = self._seen.get(user)
        if not seen:
            return np.zeros(len(self._rows), dtype=np.float32)
        scored: np.ndarray = self._similar[list(seen)].sum(axis=0)
        return scored

    def learn(self, event: Interaction, feedback: Feedback) -> None:
        """Count a like; fit anew when it is time."""
        if feedback.sign <= 0:
            return
        row, seen = self._rows[event.item_id], self._seen.setdefault(event.user_id, {})
        if row not in seen:
            others = list(seen)
            self._gram[row, others] += 1.0
            self._gram[others, row] += 1.0
            self._gram[row, row] += 1.0
            seen[row] = None
        self._likes += 1
        if self._likes % self._every == 0:
            self.fit()

    def scores_of(self, history: Sequence[str]) -> np.ndarray:
        """Return the sum of the similarities to the items of a history, float32 [n]."""
        scored: np.ndarray = self._similar[[self._rows[item] for item in dict.fromkeys(history)]].sum(axis=0)
        return scored

    def fit(self) -> None:
        """Return to the closed form over the items that were liked."""
        known = np.flatnonzero(np.diagonal(self._gram))
        gram = self._gram[np.ix_(known, known)]
        gram[np.diag_indices_from(gram)] += self._penalty
        inverse = np.linalg.inv(gram)
        similar = inverse / -np.diagonal(inverse)[None, :]
        np.fill_diagonal(similar, 0.0)
        self._similar[np.ix_(known, known)] = similar
