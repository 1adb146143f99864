"""river's biased factorisation, compiled: learns the value of each event, with a row for each user."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from common.compiled import compiled, dot
from common.errors import InvalidSetting
from common.ids import rng_for, stable_hash
from common.snapshots import MFSnapshot
from stream.learner.admission import learnable_id, number_of
from stream.learner.base import ArrayRanker
from stream.learner.freeze import frozen_snapshot
from stream.learner.kernels import GOLDEN, SeenLog, UserRows, mark_seen, mix, note_positive
from stream.learner.parts import check_counts, check_rates

MOST = np.float32(100.0)
"""No entry of a row grows beyond it, so that a wild value makes no row infinite."""


FOLD_PENALTY = 1.0
"""Of the squares of a row that is folded from a history: one liked item of length 1 goes half of the way."""


class ValueRows(NamedTuple):
    """Rows of users or of items: float32 [n, k] factors and float32 [n] bias."""

    factors: np.ndarray
    bias: np.ndarray


class ValueRule(NamedTuple):
    """How to learn: float32 rates and penalties of factors and biases, the clip, negatives and their key."""

    rate: np.float32
    bias_rate: np.float32
    penalty: np.float32
    bias_penalty: np.float32
    clip: np.float32
    negatives: int
    key: np.uint64


@compiled
def score_values(mean: np.ndarray, items: ValueRows, bias: np.float32, user: np.ndarray, out: np.ndarray) -> None:
    """Write ``mean + bias + item bias + item factors @ user`` to `out`, for as many items as it has."""
    base = np.float32(mean[1]) + bias
    for row in range(len(out)):
        out[row] = base + items.bias[row] + dot(items.factors[row], user)


@compiled
def clamped(value: np.float32, most: np.float32) -> np.float32:
    """Return the value, at least ``-most`` and at most `most`."""
    return max(-most, min(most, value))


@compiled
def step_value(
    users: ValueRows, items: ValueRows, mean: np.ndarray, rule: ValueRule, user: int, item: int, y: float
) -> None:
    """Take the value into the mean, then one step of ``(score - y) ** 2`` of both rows at once."""
    mean[0] += 1.0
    mean[1] += (y - mean[1]) / mean[0]
    theirs, its = users.factors[user], items.factors[item]
    score = np.float32(mean[1]) + users.bias[user] + items.bias[item] + dot(its, theirs)
    slope = clamped(np.float32(2.0) * (score - np.float32(y)), rule.clip)
    users.bias[user] -= rule.bias_rate * (slope + rule.bias_penalty * users.bias[user])
    items.bias[item] -= rule.bias_rate * (slope + rule.bias_penalty * items.bias[item])
    for place in range(len(its)):
        one, other = theirs[place], its[place]
        theirs[place] = clamped(one - rule.rate * (slope * other + rule.penalty * one), MOST)
        its[place] = clamped(other - rule.rate * (slope * one + rule.penalty * other), MOST)


@compiled
def learn_value(
    n_items: int,
    event: int,
    user: int,
    item: int,
    y: float,
    log_size: int,
    users: ValueRows,
    items: ValueRows,
    mean: np.ndarray,
    rule: ValueRule,
    known: UserRows,
    log: SeenLog,
    counts: np.ndarray,
    marks: np.ndarray,
) -> int:
    """Learn a value, and for one above 0 that unseen items are worth 0; return the log's new size."""
    step_value(users, items, mean, rule, user, item, y)
    if y <= 0.0:
        return log_size
    stamp = event + 1
    mark_seen(log, known.newest[user], marks, stamp)
    seen = marks[item] == stamp
    state = mix(rule.key + np.uint64(event + 1) * GOLDEN)
    drawn = 0
    for _ in range(4 * rule.negatives):
        if drawn == rule.negatives:
            break
        state += GOLDEN
        row = int(np.int64(mix(state) % np.uint64(n_items)))
        if row != item and marks[row] != stamp:
            drawn += 1
            step_value(users, items, mean, rule, user, row, 0.0)
    counts[item] += 1
    return note_positive(known, log, log_size, user, item, seen)


@compiled
def learn_values(
    n_items: np.ndarray,
    event: int,
    user: np.ndarray,
    item: np.ndarray,
    y: np.ndarray,
    log_size: int,
    users: ValueRows,
    items: ValueRows,
    mean: np.ndarray,
    rule: ValueRule,
    known: UserRows,
    log: SeenLog,
    counts: np.ndarray,
    marks: np.ndarray,
) -> int:
    """Learn values one after the other; `n_items`, int64 [events], is how many items were known at each."""
    for place in range(len(user)):
        log_size = learn_value(
            n_items[place], event + place, user[place], item[place], y[place], log_size,
            users, items, mean, rule, known, log, counts, marks,
        )  # fmt: skip
    return log_size


def folded_row(factors: np.ndarray) -> np.ndarray:
    r"""Return the p, float32 [k], that makes each liked item worth one more than it is to all: by ridge regression.

    ``argmin_p sum_h (1 - p . q_h)^2 + |p|^2`` over the rows q of the history, float32 [h, k]; zeros for none.
    """
    wide = factors.astype(np.float64)
    gram = wide.T @ wide + FOLD_PENALTY * np.eye(wide.shape[1])
    row: np.ndarray = np.linalg.solve(gram, wide.sum(axis=0)).astype(np.float32)
    return row


class PointwiseMF(ArrayRanker):
    r"""Biased matrix factorisation, learned value by value: river's `BiasedMF` with arrays for dictionaries.

    $s_k = \mu + b_u + b_k + p_u \cdot q_k$ with $\mu$ the running mean of all values; each event $(u, k, y)$ is one
    step of gradient descent on $(s_k - y)^2$. The defaults are those of river's MovieLens example.

    It is the learner for ratings: y is what is predicted, above 0 it also counts as liked, for histories and for
    `top_k`. Where all events are likes there is nothing to tell apart; `negatives` then adds unseen items as zeros.
    Unlike the other learners it has a row for each user, which starts from a stable hash of seed and id with the
    user's first event, and moves with the rows of items: what a user gets depends on what others did between. A history
    given for a stranger is folded in by least squares, see `folded_row`; nothing of it stays.

    Parameters
    ----------
    n_factors
        Length of a row of p and q.
    lr, bias_lr
        Rates of p and q, and of the biases.
    l2, bias_l2
        Their penalties.
    clip
        The largest slope of the loss that is taken; 2 times the largest error for all ratings that there are.
    init_scale
        Standard deviation of an entry of a new row.
    negatives
        How many unseen items are learned as 0 with each value above 0.
    window
        How many of the newest liked items are kept in order.
    seed
        Of rows and negatives.

    Examples
    --------
    >>> from stream.learner.pointwise import PointwiseMF
    >>> model = PointwiseMF(seed=1)
    >>> for _ in range(50):
    ...     model.learn_many(["ann", "ann", "bob", "bob"], ["tea", "ale", "tea", "ale"], [5.0, 1.0, 2.0, 4.0])
    >>> [round(model.predict_one(user, item)) for user in ("ann", "bob") for item in ("tea", "ale")]
    [5, 1, 2, 4]

    References
    ----------
    Koren, Bell, Volinsky: Matrix factorization techniques for recommender systems. Computer 42(8), 2009.
    """

    def __init__(
        self,
        n_factors: int = 10,
        lr: float = 0.05,
        bias_lr: float = 0.025,
        l2: float = 0.0,
        bias_l2: float = 0.0,
        clip: float = 10.0,
        init_scale: float = 0.1,
        negatives: int = 0,
        window: int = 50,
        seed: int = 0,
    ) -> None:
        check_counts({"n_factors": n_factors})
        check_counts({"negatives": negatives}, 0)
        rates = {"lr": lr, "bias_lr": bias_lr, "l2": l2, "bias_l2": bias_l2, "clip": clip, "init_scale": init_scale}
        check_rates(rates, zero_allowed=frozenset({"l2", "bias_l2", "init_scale"}))
        super().__init__(seed=seed, window=window)
        self.n_factors, self.lr, self.bias_lr, self.l2, self.bias_l2 = n_factors, lr, bias_lr, l2, bias_l2
        self.clip, self.init_scale, self.negatives = clip, init_scale, negatives
        for arrays in (self._item_arrays, self._user_arrays):
            arrays["factors"] = np.zeros((0, n_factors), dtype=np.float32)
            arrays["bias"] = np.zeros(0, dtype=np.float32)
        self._fixed_arrays["mean"] = np.zeros(2, dtype=np.float64)
        self._rule = ValueRule(
            np.float32(lr),
            np.float32(bias_lr),
            np.float32(l2),
            np.float32(bias_l2),
            np.float32(clip),
            negatives,
            np.uint64(stable_hash(seed, "pointwise-negatives")),
        )
        self._nobody = np.zeros(n_factors, dtype=np.float32)
        self._rewire()

    def _rewire(self) -> None:
        super()._rewire()
        if "mean" not in self._fixed_arrays:  # the base class wires once before the factors exist
            return
        self._items = ValueRows(self._item_arrays["factors"], self._item_arrays["bias"])
        self._valued = ValueRows(self._user_arrays["factors"], self._user_arrays["bias"])
        counts = self._item_arrays["counts"]
        mean, marks = self._fixed_arrays["mean"], np.zeros(len(counts), dtype=np.int64)
        self._state: tuple[Any, ...] = (
            self._valued, self._items, mean, self._rule, self._users, self._log, counts, marks,
        )  # fmt: skip

    def initial_row(self, kind: str, name: str) -> np.ndarray:
        """Return the factors, float32 [n_factors], with which a "user" or an "item" starts."""
        drawn = rng_for(self.seed, f"pointwise-{kind}", name).standard_normal(self.n_factors)
        row: np.ndarray = (drawn * self.init_scale).astype(np.float32)
        return row

    def _start_item(self, row: int, item: str) -> None:
        self._items.factors[row] = self.initial_row("item", item)

    def _user(self, user: str) -> int:
        known = self._user_rows.get(user)
        if known is not None:
            return known
        row = super()._user(user)
        self._valued.factors[row] = self.initial_row("user", user)
        return row

    def learn_one(self, user: str, item: str, y: float = 1.0, x: Mapping[str, object] | None = None) -> None:
        """Learn that the item is worth y to the user; above 0 it is also noted as liked.

        Raises
        ------
        MalformedEvent
            When an id or y cannot be learned; nothing has changed.
        """
        user_id, item_id, value = learnable_id("user", user), learnable_id("item", item), number_of(y)
        self._learn(self._user(user_id), self._item(item_id), value)
        self._events += 1

    def _learn(self, user: int, item: int, weight: float) -> None:
        self._make_room(1)
        self._log_size = learn_value(self.n_items, self._events, user, item, weight, self._log_size, *self._state)

    def learn_many(
        self,
        users: Sequence[str],
        items: Sequence[str],
        ys: Sequence[float] | None = None,
        times: Sequence[int] | None = None,
    ) -> None:
        """Learn events one after the other, exactly as `learn_one` would; `ys` defaults to ones.

        Raises
        ------
        MalformedEvent
            As for `learn_one`; all events are checked before the first is learned.
        InvalidSetting
            When the lengths differ.
        """
        size = len(users)
        values = [1.0] * size if ys is None else ys
        if not size == len(items) == len(values) == len(values if times is None else times):
            raise InvalidSetting(f"{size} users, {len(items)} items, {len(values)} values", expected="as many of each")
        users, items = ([learnable_id("user", one) for one in users], [learnable_id("item", one) for one in items])
        targets = np.array([number_of(y) for y in values], dtype=np.float64)
        rows = np.array([self._user(user) for user in users], dtype=np.int64)
        places, known = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.int64)
        for place, item in enumerate(items):
            places[place], known[place] = self._item(item), self.n_items
        self._make_room(size)
        self._log_size = learn_values(known, self._events, rows, places, targets, self._log_size, *self._state)
        self._events += size

    def _scores(self, user: int) -> np.ndarray:
        scored = np.empty(self.n_items, dtype=np.float32)
        score_values(self._fixed_arrays["mean"], self._items, *self._reader(user), scored)
        return scored

    def _reader(self, user: int) -> tuple[np.float32, np.ndarray]:
        """Return a user's bias and factors; zeros for a stranger, whose history is folded in where it was given."""
        if user < 0:
            return np.float32(0.0), self._nobody
        if user >= self.n_users:
            return np.float32(0.0), folded_row(self._items.factors[self._history(user)])
        return self._valued.bias[user], self._valued.factors[user]

    def predict_one(self, user: str, item: str, x: Mapping[str, object] | None = None) -> float:
        """Return the value that is expected; strangers have no bias and no factors, new items their first row."""
        row, place = self.item_row(item), self._row_of(user)
        if row is None:
            return self._unknown_item_score(place, item)
        scored = np.empty(1, dtype=np.float32)
        its = ValueRows(self._items.factors[row : row + 1], self._items.bias[row : row + 1])
        score_values(self._fixed_arrays["mean"], its, *self._reader(place), scored)
        return float(scored[0])

    def _unknown_item_score(self, user: int, item: str) -> float:
        scored = np.empty(1, dtype=np.float32)
        its = ValueRows(self.initial_row("item", item)[None, :], np.zeros(1, dtype=np.float32))
        score_values(self._fixed_arrays["mean"], its, *self._reader(user), scored)
        return float(scored[0])

    def snapshot(self, offsets: Mapping[str, Mapping[str, int]]) -> MFSnapshot:
        """Return frozen copies of what serving needs.

        Serving folds a user from the items of the history, whoever it is: from their q, the last ten most. The learned
        rows of users stay here.

        Parameters
        ----------
        offsets
            Topic to partition (as text) to the next offset to read.
        """
        rows = slice(0, self.n_items)
        factors, bias = self._items.factors[rows].copy(), self._items.bias[rows].copy()
        return frozen_snapshot(self, factors, factors, bias, 10.0, offsets)
