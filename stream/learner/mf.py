"""Matrix factorisation that learns from every click and needs no rows for users."""

from collections.abc import Mapping, Sequence

import numpy as np

from common.errors import InvalidSetting
from common.ids import rng_for, stable_hash
from common.snapshots import MFSnapshot
from stream.learner.base import ArrayRanker
from stream.learner.freeze import frozen_snapshot
from stream.learner.haste import Haste, hastened
from stream.learner.kernels import ItemRows, Rule, Scratch, fold, learn_event, learn_events, score_all, step_liked
from stream.learner.parts import check_counts, check_rates, decay_of
from stream.learner.prior import ContentPrior
from stream.learner.reservoir import Reservoir
from stream.learner.retention import Retention
from stream.learner.text import checked_vectors


class MF(ArrayRanker):
    r"""Factored item similarity with a recency-weighted user, learned by sampled softmax.

    With $h_0, h_1, \dots$ the user's liked items, newest first, and $w_d = e^{-d / \tau}$ over the last `window`,

    $$u = \frac{\sum_d w_d V_{h_d}}{\sqrt{\sum_d w_d}}, \qquad s_k = b_k + u \cdot Q_k.$$

    A liked item is one step on $-\log \mathrm{softmax}(s)$ of it among itself and N uniform items that the user has
    not liked; the step moves b and Q of those items and, through u, V of the history. A disliked item is one step on
    $-\log(1 - \sigma(s))$ of its own b and Q, at `dislike` times the rate. Steps are AdaGrad's, one accumulator a row.

    The user is folded from what they liked, so there is no user vector to learn, lose or send, and a new user counts
    from the first click. A row starts from a stable hash of seed and id and the negatives from one of seed and event
    number, so neither the order in which items appear nor a restart changes them. Reading never changes the state.

    Parameters
    ----------
    n_factors
        Length of a row of V and Q.
    negatives
        N.
    window
        How many of the newest liked items fold into the user.
    recency
        $\tau$, in events of the user.
    lr
        AdaGrad's rate of V and Q.
    bias_lr
        The same of b.
    accumulator
        Where the sums of squared gradients start; larger is more cautious with rare items.
    init_scale
        Expected length of a new row.
    dislike
        How much of a full step a disliked item takes; 0 ignores dislikes.
    rate_floor
        Least share of a rate that a row keeps, however often it was taught: AdaGrad's share is one over the root of the
        accumulator. A row with an accumulator of 2,500 reaches the default. The share is of steps up to length 1.
    ttl_days, admit_at
        Days of event time after which an untouched row starts anew, and at which of its events an item gets a row: see
        `Retention`; off by default.
    drift_boost, drift_events
        Factor on the rates for so many events after `quicken`; 1 is off.
    text_dimensions, kappa, ridge
        Length of a text row, how many likes weigh as much as the text, and the penalty of the fit: see `ContentPrior`;
        0 takes no texts. With texts, an item that nobody liked yet keeps to its own: only its bias sinks.
    replay, replay_rate
        Size of the sample of a user's likes that is learned again, and the share of likes that one of it follows: see
        `Reservoir`; 0 is off.
    seed
        Of rows, negatives and what is learned again.

    Examples
    --------
    >>> import random
    >>> from stream.learner.mf import MF
    >>> model, rng = MF(n_factors=16, negatives=4, seed=7), random.Random(0)
    >>> for _ in range(600):
    ...     group = rng.choice(["tea", "ale"])
    ...     model.learn_one(f"{group} drinker {rng.randrange(20)}", f"{group} {rng.randrange(5)}")
    >>> model.learn_one("new", "ale 0")
    >>> sorted(item for item, _ in model.top_k("new", 4))
    ['ale 1', 'ale 2', 'ale 3', 'ale 4']
    >>> model.rank("new", {"tea 1", "ale 3"})
    ['ale 3', 'tea 1']

    References
    ----------
    Kabbur, Ning, Karypis: FISM: factored item similarity models for top-N recommender systems. KDD 2013.
    Bengio, Senécal: Adaptive importance sampling to accelerate training of a neural probabilistic language model.
    IEEE Transactions on Neural Networks 19(4), 2008 (sampled softmax).
    """

    def __init__(
        self,
        n_factors: int = 64,
        negatives: int = 50,
        window: int = 50,
        recency: float = 10.0,
        lr: float = 1.0,
        bias_lr: float = 0.1,
        accumulator: float = 1.0,
        init_scale: float = 1.0,
        dislike: float = 0.1,
        rate_floor: float = 0.02,
        ttl_days: float = 0.0,
        admit_at: int = 1,
        drift_boost: float = 1.0,
        drift_events: int = 300,
        text_dimensions: int = 0,
        kappa: float = 10.0,
        ridge: float = 1.0,
        replay: int = 0,
        replay_rate: float = 0.5,
        seed: int = 0,
    ) -> None:
        check_counts({"n_factors": n_factors, "negatives": negatives})
        rates = {"recency": recency, "lr": lr, "bias_lr": bias_lr, "accumulator": accumulator, "init_scale": init_scale}
        shares = {"dislike": dislike, "rate_floor": rate_floor}
        check_rates({**rates, **shares}, zero_allowed=frozenset(shares))
        self.n_factors, self.negatives, self.recency = n_factors, negatives, recency
        self.lr, self.bias_lr, self.accumulator = lr, bias_lr, accumulator
        self.init_scale, self.dislike, self.rate_floor = init_scale, dislike, rate_floor
        self.ttl_days, self.admit_at = ttl_days, admit_at
        self.drift_boost, self.drift_events = drift_boost, drift_events
        self.text_dimensions, self.kappa, self.ridge = text_dimensions, kappa, ridge
        self.replay, self.replay_rate = replay, replay_rate
        self._prior = ContentPrior(text_dimensions, kappa, ridge, n_factors)
        self._haste = Haste(drift_boost, drift_events)
        super().__init__(seed=seed, window=window, retention=Retention(ttl_days, admit_at))
        self._reservoir = Reservoir(replay, replay_rate, window, seed)
        self._user_arrays |= self._reservoir.user_arrays()
        self._fixed_arrays |= self._haste.fixed_arrays() | self._prior.fixed_arrays()
        self._item_arrays |= {
            "history": np.zeros((0, n_factors), dtype=np.float32),
            "factors": np.zeros((0, n_factors), dtype=np.float32),
            **{name: np.zeros(0, dtype=np.float32) for name in ("bias", "history_sum", "factors_sum", "bias_sum")},
            **self._prior.item_arrays(),
        }
        self._rule = Rule(
            decay_of(window, recency),
            np.float32(lr),
            np.float32(bias_lr),
            np.float32(dislike),
            negatives,
            np.uint64(stable_hash(seed, "mf-negatives")),
            np.float32(rate_floor),
        )
        self._hasty = hastened(self._rule, drift_boost)
        self._rewire()

    def _rewire(self) -> None:
        super()._rewire()
        arrays = self._item_arrays
        if "history" not in arrays:  # the base class wires once before the factors exist
            return
        self._haste.wire(self._fixed_arrays)
        self._reservoir.wire(self._user_arrays, self._users)
        self._prior.wire(arrays, self._fixed_arrays)
        self._likes = arrays["counts"] if self._prior.on else np.zeros(0, dtype=np.int64)
        self._items = ItemRows(*(arrays[name] for name in ItemRows._fields))
        self._scratch = Scratch(
            marks=np.zeros(len(arrays["counts"]), dtype=np.int64),
            rows=np.zeros(self.negatives + 1, dtype=np.int64),
            scores=np.zeros(self.negatives + 1, dtype=np.float32),
            user=np.zeros(self.n_factors, dtype=np.float32),
            pull=np.zeros(self.n_factors, dtype=np.float32),
        )

    def initial_rows(self, item: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the V and Q, float32 [n_factors] each, with which the item starts."""
        drawn = rng_for(self.seed, "mf-item", item).standard_normal((2, self.n_factors))
        rows = (drawn * (self.init_scale / np.sqrt(self.n_factors))).astype(np.float32)
        return rows[0], rows[1]

    def _start_item(self, row: int, item: str) -> None:
        history, factors = self.initial_rows(item)
        self._prior.start(row, history, factors)
        self._begin(row, history, factors)

    def _begin(self, row: int, history: np.ndarray, factors: np.ndarray) -> None:
        self._items.history[row], self._items.factors[row] = history, factors
        for sums in (self._items.history_sum, self._items.factors_sum, self._items.bias_sum):
            sums[row] = self.accumulator

    def _restart_item(self, row: int, item: str) -> None:
        self._items.bias[row] = 0.0
        self._begin(row, *(self._prior.start_of(row) if self._prior.on else self.initial_rows(item)))

    def describe(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Take the items' text vectors, float [n, h], all at once; the items become candidates.

        Vectors of another version replace the ones before: rows move with their priors, and what was learned stays.
        The same vectors again change nothing.

        Raises
        ------
        InvalidSetting
            When they are not one finite row an id, or this learner takes no texts.
        """
        if not self._prior.on:
            raise InvalidSetting("texts for an MF without text_dimensions", expected="text_dimensions above 0")
        checked, before = checked_vectors(ids, vectors), self.described_by
        self._prior.texts.describe(self._rows_of_all(ids), checked)
        if self.described_by != before:
            self._prior.refit(self._items, self._item_arrays["counts"], self.n_items)

    @property
    def described_by(self) -> int:
        """Fingerprint of the newest texts; 0 before the first."""
        return int(self._fixed_arrays["described"][0]) if self._prior.on else 0

    def user_factors(self, user: str) -> np.ndarray:
        """Return u, float32 [n_factors]; zeros for a user without history."""
        return self._folded(self._row_of(user))

    def _folded(self, row: int) -> np.ndarray:
        folded = np.zeros(self.n_factors, dtype=np.float32)
        if row >= 0:
            fold(self._items.history, self._users.ring[row], int(self._users.positives[row]), self._rule.decay, folded)
        return folded

    def _scores(self, user: int) -> np.ndarray:
        scored = np.empty(self.n_items, dtype=np.float32)
        score_all(self._items.bias, self._items.factors, self._folded(user), scored)
        return scored

    def _unknown_item_score(self, user: int, item: str) -> float:
        scored = np.empty(1, dtype=np.float32)
        _, factors = self.initial_rows(item)
        score_all(np.zeros(1, dtype=np.float32), factors[None, :], self._folded(user), scored)
        return float(scored[0])

    def quicken(self) -> None:
        """Learn at `drift_boost` times the rates for the next `drift_events` events."""
        self._haste.start(self._events)

    def _learn(self, user: int, item: int, weight: float) -> None:
        rule, recalled = self._rule if self._haste.at(self._events) == 1.0 else self._hasty, -1
        if weight > 0:
            self._item_arrays["counts"][item] += 1
            recalled = self._reservoir.turn(user, item, self._events)
        self._log_size = learn_event(
            self._items,
            self._users,
            self._log,
            rule,
            self._scratch,
            self.n_items,
            self._events,
            user,
            item,
            weight,
            self._log_size,
            self._likes,
        )
        if recalled >= 0:
            self._relearn(user, item, recalled, rule)
        if self._prior.due(self._events + 1):
            self._prior.refit(self._items, self._item_arrays["counts"], self.n_items)

    def _relearn(self, user: int, item: int, recalled: int, rule: Rule) -> None:
        """One step of an item of the past; the event's marks of what the user has seen still stand."""
        users, stamp = self._reservoir.without(user, recalled), self._events + 1
        if users.positives[0]:
            self._scratch.marks[item] = stamp
            other = self._reservoir.negatives(rule)
            one = np.float32(1.0)
            step_liked(
                self._items,
                users,
                other,
                self._scratch,
                self.n_items,
                self._events,
                0,
                recalled,
                one,
                stamp,
                self._likes,
            )

    def _learn_checked(self, events: list[tuple[str, str, float]]) -> None:
        if self._haste.at(self._events) != 1.0 or self._reservoir.on or self._prior.on:  # the many have one rule
            super()._learn_checked(events)
            return
        size = len(events)
        users, items, known = (np.empty(size, dtype=np.int64) for _ in range(3))
        weights = np.empty(size, dtype=np.float64)
        for place, (user, item, weight) in enumerate(events):
            items[place] = self._item(item)
            users[place] = self._user(user) if weight > 0 else self._user_rows.get(user, -1)
            weights[place], known[place] = weight, self.n_items
        self._make_room(size)
        np.add.at(self._item_arrays["counts"], items[weights > 0], 1)
        self._log_size = learn_events(
            self._items,
            self._users,
            self._log,
            self._rule,
            self._scratch,
            known,
            self._events,
            users,
            items,
            weights,
            self._log_size,
            self._likes,
        )
        self._events += size

    def snapshot(self, offsets: Mapping[str, Mapping[str, int]]) -> MFSnapshot:
        """Return frozen copies of what serving needs.

        Parameters
        ----------
        offsets
            Topic to partition (as text) to the next offset to read.
        """
        items, rows = self._items, slice(0, self.n_items)
        return frozen_snapshot(
            self,
            items.history[rows].copy(),
            items.factors[rows].copy(),
            items.bias[rows].copy(),
            float(self.recency),
            offsets,
        )
