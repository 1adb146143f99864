"""Neighbours, factors, content and popularity as one opinion, with weights learned from the same clicks."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from common.blends import MEMBERS, BlendMembers
from common.errors import InvalidSetting
from common.snapshots import MFSnapshot
from stream.learner.admission import learnable_id
from stream.learner.blending import Kit, Learned, Opinions, ask_all, room_for, teach_all, try_item
from stream.learner.factors import FactorsPart
from stream.learner.freeze import frozen_snapshot
from stream.learner.habit import VISIT_MS, Habit
from stream.learner.haste import Haste
from stream.learner.kernels import UserRows
from stream.learner.lists import all_histories
from stream.learner.neighbours import NeighboursPart
from stream.learner.parts import PartRanker, check_counts, check_rates
from stream.learner.popularity import PopularityPart
from stream.learner.reservoir import Reservoir
from stream.learner.retention import Retention
from stream.learner.stride import stride_of
from stream.learner.text import TextSpace, checked_vectors

__all__ = ["BUCKETS", "MEMBERS", "START", "Blend"]

BUCKETS = (0, 1, 6, 21)
"""Each length of history from one of these on, up to the next, has weights of its own."""
START = (1.0, 1.0, 0.3, 0.1)
"""The members' weights before anything is learned; the best of three on MovieLens-100K."""
OPENING = (0.1, 0.1, 0.1, 0.1)
"""The same where a question opens a visit: habit has most to say. By hand, on the first 30,000 of online-retail."""
OPENING_FOCUS = 0.0
"""q where a question opens a visit: there are few of these, and each is nearly hopeless at first."""
TRIED = np.float32(0.7)
"""How much of a like counts, in what neighbours learn, an item that was tried and not liked; set once, by hand."""


class Blend(PartRanker):
    r"""The weighted sum of four members' z-scores, its weights learned online.

    With $z_m$ the member's scores, standardised over the items that the user may be shown,
    $s_k = \sum_m w_{b m} z_{m k}$, one $w_b \ge 0$ for each bucket b of the length of the history (`BUCKETS`). Each
    liked event is one step on $(1 - p^q) / q$, p being the softmax of its item among all that may be shown: between
    likelihood (q to 0), which listens to hopeless events most, and the chance of a hit (q = 1). Then each member
    learns the event. Weights come from what the members said before it. What was tried and not liked (`try_one`) is no
    step of these, and the neighbours' alone.

    Members: `Neighbours`; factors with a content prior (`stream.learner.factors.FactorsPart`); likeness of texts, as
    `Content`; `DecayedPopularity`. Without `describe` there is no content, and the others go on.

    Parameters
    ----------
    n_factors, negatives, window, recency, lr, bias_lr, accumulator, init_scale, dislike, rate_floor
        Of the factors, as for `MF`.
    text_dimensions, text_lr
        Of the texts: length of a row, and AdaGrad's rate of what is learned about them.
    places, gap, neighbour_recency, alpha, beta
        Of the neighbours, as for `Neighbours`.
    half_life
        Of the popularity.
    weight_lr, focus
        Rate of the weights, and q.
    repeats
        Whether what a user liked before may be shown again (shops re-buy; films are watched once). Then the score of
        such an item also has what `stream.learner.habit` learned about its kind, and a question that is asked at a time
        at which the user comes for another visit has weights of its own, which are learned with q = 0.
    ttl_days, admit_at
        As for `MF`: what starts anew is the factors' row, the other members fade by themselves.
    drift_boost, drift_events
        As for `MF`: factor on the factors' rates for so many events after `quicken`; 1 is off.
    replay, replay_rate
        As for `MF`: what the factors learn again.
    seed
        Of rows, negatives and what is learned again.

    Examples
    --------
    >>> import random
    >>> from stream.learner.blend import Blend
    >>> model, rng = Blend(n_factors=16, negatives=4, seed=7), random.Random(0)
    >>> for _ in range(600):
    ...     group = rng.choice(["tea", "ale"])
    ...     model.learn_one(f"{group} drinker {rng.randrange(20)}", f"{group} {rng.randrange(5)}")
    >>> model.learn_one("new", "ale 0")
    >>> sorted(item for item, _ in model.top_k("new", 4))
    ['ale 1', 'ale 2', 'ale 3', 'ale 4']

    References
    ----------
    Zhang, Sabuncu: Generalized cross entropy loss for training deep neural networks with noisy labels. NeurIPS 2018
    (the loss of the weights).
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
        text_dimensions: int = 64,
        text_lr: float = 1.0,
        places: int = 512,
        gap: float = 15.0,
        neighbour_recency: float = 4.0,
        alpha: float = 0.5,
        beta: float = 0.55,
        half_life: float = 3000.0,
        weight_lr: float = 0.01,
        focus: float = 0.5,
        repeats: bool = False,
        ttl_days: float = 0.0,
        admit_at: int = 1,
        drift_boost: float = 1.0,
        drift_events: int = 300,
        replay: int = 0,
        replay_rate: float = 0.5,
        seed: int = 0,
    ) -> None:
        check_counts({"window": window})
        check_rates({"weight_lr": weight_lr, "focus": focus}, zero_allowed=frozenset({"weight_lr"}))
        if type(seed) is not int:
            raise InvalidSetting(f"seed {seed!r} is {type(seed).__name__}", expected="an int")
        self.n_factors, self.negatives, self.recency = n_factors, negatives, recency
        self.lr, self.bias_lr, self.accumulator = lr, bias_lr, accumulator
        self.init_scale, self.dislike, self.rate_floor = init_scale, dislike, rate_floor
        self.places, self.gap, self.neighbour_recency = places, gap, neighbour_recency
        self.alpha, self.beta, self.half_life = alpha, beta, half_life
        self.text_dimensions, self.text_lr, self.repeats = text_dimensions, text_lr, repeats
        self.weight_lr, self.focus, self.ttl_days, self.admit_at = weight_lr, focus, ttl_days, admit_at
        self.drift_boost, self.drift_events = drift_boost, drift_events
        self.replay, self.replay_rate = replay, replay_rate
        self._haste, self._boost = Haste(drift_boost, drift_events), 1.0
        self._reservoir = Reservoir(replay, replay_rate, window, seed)
        self._texts = TextSpace(text_dimensions, window, recency)
        self._factors = FactorsPart(
            self._texts, n_factors=n_factors, negatives=negatives, window=window, recency=recency, lr=lr,
            bias_lr=bias_lr, text_lr=text_lr, accumulator=accumulator, init_scale=init_scale, dislike=dislike,
            rate_floor=rate_floor, seed=seed,
        )  # fmt: skip
        self._neighbours = NeighboursPart(window, places, gap, neighbour_recency, alpha, beta, 1.0)
        self._popularity = PopularityPart(half_life, 0.5)
        self._habit = Habit(len(BUCKETS) + 1) if repeats else None
        parts = (self._neighbours, self._factors, self._texts, self._popularity)
        super().__init__(parts, seed, window, Retention(ttl_days, admit_at))
        self._add_arrays()
        self._rewire()

    def _add_arrays(self) -> None:
        """Add what is neither a part's nor the base's."""
        self._ts: object = None
        self._nothing_said = self._room = room_for(len(MEMBERS), 0)
        self._fixed_arrays |= self._haste.fixed_arrays()
        self._user_arrays |= self._reservoir.user_arrays()
        if self._habit is not None:
            self._fixed_arrays |= self._habit.fixed_arrays()
            self._user_arrays |= self._habit.user_arrays()
            self._log_arrays |= self._habit.log_arrays()
        self._user_arrays |= {
            "tried.ring": np.zeros((0, self.window), dtype=np.int32),
            "tried.positives": np.zeros(0, dtype=np.int64),
        }
        opening = [] if self._habit is None else [OPENING]
        self._fixed_arrays["weights"] = np.array([START] * len(BUCKETS) + opening, dtype=np.float64)

    def _rewire(self) -> None:
        super()._rewire()
        self._last: tuple[tuple[int, int, int, bool], Opinions] | None = None
        if "tried.ring" in self._user_arrays:  # the base classes wire before there are all arrays
            arrays = self._user_arrays
            self._tried = UserRows(arrays["tried.ring"], arrays["tried.positives"], arrays["newest"])
            self._neighbours.follow(self._tried)
            self._haste.wire(self._fixed_arrays)
            self._reservoir.wire(self._user_arrays, self._users)
            if self._habit is not None:
                rows = self._users, self._log
                self._habit.wire(self._user_arrays, self._log_arrays, self._fixed_arrays, rows)
            learned = Learned(
                self._users,
                self._log,
                self._ground.counts,
                self._neighbours.pairs,
                self._factors.items,
                self._factors.taste,
                self._texts.rows,
                self._popularity.masses,
                self._tried,
                self._neighbours.counts,
            )
            self._kit = Kit(learned, self._neighbours.query, self._factors.tools)

    def _restart_item(self, row: int, item: str) -> None:
        super()._restart_item(row, item)
        self._last = None

    def describe(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Take the items' text vectors, float [n, h], all at once; the items become candidates.

        Vectors of another version replace the ones before. What was learned from clicks stays; what was learned about
        texts is carried over to the new ones (`stream.learner.text.change_of`). The same vectors again change nothing.

        Raises
        ------
        InvalidSetting
            When they are not one finite row an id.
        """
        checked = checked_vectors(ids, vectors)
        change = self._texts.describe(self._rows_of_all(ids), checked)
        if change is not None:
            self._factors.rebase(change)
        self._last = None

    @property
    def described_by(self) -> int:
        """Fingerprint of the newest texts; 0 before the first."""
        return int(self._fixed_arrays[f"{self._texts.name}.described"][0])

    def weights(self) -> Mapping[int, Mapping[str, float]]:
        """Return the learned weights: least length of history, to member, to weight."""
        return {
            least: dict(zip(MEMBERS, map(float, row), strict=True))
            for least, row in zip(BUCKETS, self._fixed_arrays["weights"][: len(BUCKETS)], strict=True)
        }

    def _scores(self, user: int) -> np.ndarray:
        return self._scores_at(user, None)

    def _scores_at(self, user: int, at: int | None) -> np.ndarray:
        row = self._with_history(user)
        # a row behind the known ones is another guest each time
        return (
            self._ask(row, self._new_room(0)).total
            if row >= self.n_users
            else self._opinions(row, self._opens(row, at)).total.copy()
        )

    def _opens(self, row: int, at: object) -> bool:
        """Return whether a question of this time opens a visit; a guest says what it liked, not when."""
        return self._habit is not None and 0 <= row < self.n_users and self._habit.opens(row, at)

    def member_scores(self, user: str) -> Mapping[str, np.ndarray]:
        """Return what each member says of every known item, as z-scores, float32 [n_items]."""
        return dict(zip(MEMBERS, self._opinions(self._with_history(self._row_of(user))).z.copy(), strict=True))

    def _unknown_item_score(self, user: int, item: str) -> float:
        return float(self._ask(self._with_history(user), self._new_room(1)).total[-1])

    def _opinions(self, row: int, opens: bool = False) -> Opinions:
        """Return the members' opinions for a user's row; those of the last question are at hand for its click."""
        key = (row, self._events, self.n_items, opens)
        if self._last is None or self._last[0] != key:
            if len(self._room.total) != self.n_items:
                self._room = self._new_room(0)
            self._last = None  # the room may be of another answer from here on
            self._last = key, self._ask(row, self._room, opens)
        return self._last[1]

    def _new_room(self, unknown: int) -> Opinions:
        """Return room for what is said of the items and of so many unknown ones, for whoever keeps it."""
        return room_for(len(MEMBERS), self.n_items + unknown)

    def _ask(self, row: int, opinions: Opinions, opens: bool = False) -> Opinions:
        ask_all(
            self._texts.described,
            self._events,
            row,
            self._weights_of(row, opens),
            not self.repeats,
            self.n_items,
            *opinions,
            self._kit,
        )
        if self._habit is not None and 0 <= row < self.n_users:  # a guest says what it liked, not when
            self._habit.add(row, self._table_of(row, opens), opens, opinions.total)
        return opinions

    def _table_of(self, row: int, opens: bool) -> int:
        """Return the row of what is learned for each length of history; questions that open a visit have the last."""
        if opens:
            return len(BUCKETS)
        return bisect_right(BUCKETS, 0 if row < 0 else int(self._users.positives[row])) - 1

    def _weights_of(self, row: int, opens: bool) -> np.ndarray:
        weights: np.ndarray = self._fixed_arrays["weights"][self._table_of(row, opens)]
        return weights

    def quicken(self) -> None:
        """Learn the factors at `drift_boost` times their rates for the next `drift_events` events."""
        self._haste.start(self._events)

    def _learn(self, user: int, item: int, weight: float) -> None:
        boost = self._haste.at(self._events)
        if boost != self._boost:
            self._boost = boost
            self._factors.hasten(boost)
            self._rewire()
        if weight < 0:
            super()._learn(user, item, weight)
            return
        row = self._with_history(user)
        rate, recalled = self._weight_rate(weight), self._reservoir.turn(user, item, self._events)
        opens = self._opens(row, self._ts)
        focus = OPENING_FOCUS if opens else float(self.focus)
        if self._habit is not None and rate and row >= 0:
            table, total, share = self._table_of(row, opens), self._opinions(row, opens).total, min(weight, 1.0)
            self._habit.weigh(row, table, opens, total, item, share, focus)
        self._log_size = teach_all(
            self._texts.described,
            self.n_items,
            self._events,
            user,
            item,
            weight,
            self._log_size,
            *(self._opinions(row, opens) if rate else self._nothing_said),
            self._weights_of(row, opens),
            rate,
            focus,
            self._kit,
        )
        if recalled >= 0 and (users := self._reservoir.without(user, recalled)).positives[0]:
            self._ground.marks[item] = self._events + 1
            rule = self._reservoir.negatives(self._factors.rule)
            self._factors.relearn(users, recalled, self._events, self.n_items, rule)
        if self._habit is not None:
            self._habit.note(user, item, self._ts)

    def learn_one(self, user: str, item: str, y: float = 1.0, x: Mapping[str, object] | None = None) -> None:
        """Learn one event, as `ArrayRanker.learn_one`; with `repeats`, "ts" in `x` tells one visit from the next."""
        self._ts = None if x is None else x.get("ts")
        super().learn_one(user, item, y, x)

    def try_one(self, user: str, item: str) -> None:
        """Take note that a user tried an item and did not say that it was liked: it was rated with a few stars.

        It tells what the user is at, so neighbours go by it as by a like, and it is not recommended, unless `repeats`
        are allowed. An unknown item is left unknown.

        Raises
        ------
        MalformedEvent
            When an id cannot be learned; nothing has changed.
        """
        user_id, item_id = learnable_id("user", user), learnable_id("item", item)
        tried = self._item_rows.get(item_id)
        if tried is None:
            return
        row, part = self._user(user_id), self._neighbours
        self._make_room(1)
        self._log_size = try_item(
            part.pairs, self._tried, part.counts, part.query, self._log, self._log_size, row, tried, TRIED,
            not self.repeats,
        )  # fmt: skip
        self._last = None

    def _with_history(self, row: int) -> int:
        return -1 if row < 0 or not self._tried.positives[row] else row

    @contextmanager
    def _seated(self, history: Iterable[str]) -> Iterator[int]:
        with super()._seated(history) as row:
            tried, users = self._tried, self._users
            tried.ring[row], tried.positives[row] = users.ring[row], users.positives[row]
            try:
                yield row
            finally:
                tried.ring[row], tried.positives[row] = 0, 0

    @property
    def _minds_times(self) -> bool:
        return self._retention.on or self.repeats

    def _weight_rate(self, weight: float) -> float:
        """Return the rate at which the weights learn this event, 0 for not at all."""
        return 0.0 if self._events % stride_of(self.n_items) else float(self.weight_lr * min(weight, 1.0))

    def snapshot(self, offsets: Mapping[str, Mapping[str, int]]) -> MFSnapshot:
        """Return frozen copies of all members and weights, for serving.

        `MFSnapshot.scores` of it are those of the member `factors`: columns of V and Q beyond `n_factors` are what the
        texts say.

        Parameters
        ----------
        offsets
            Topic to partition (as text) to the next offset to read.
        """
        items, taste, rows = self._factors.items, self._factors.taste, slice(0, self.n_items)
        texts = self._texts.rows[rows, : self.text_dimensions if self._texts.described else 0]
        factors, bias = np.hstack([items.factors[rows], texts]), items.bias[rows].copy()
        history = np.empty_like(factors)
        history[:, : self.n_factors] = items.history[rows]
        if self._texts.described:
            np.matmul(texts, taste.matrix, out=history[:, self.n_factors :])
            bias += texts @ taste.tilt
        return frozen_snapshot(self, history, factors, bias, float(self.recency), offsets, self._frozen_members())

    def _frozen_members(self) -> BlendMembers:
        starts, items, weights = self._neighbours.similarities(self.n_items)
        popularity = np.empty(self.n_items, dtype=np.float32)
        self._popularity.score(-1, self._events, popularity)
        tried_starts, tried_items = all_histories(self._tried, self.n_users)
        return BlendMembers(
            weights=self._fixed_arrays["weights"][: len(BUCKETS)].copy(),
            pair_starts=starts,
            pair_items=items,
            pair_weights=weights,
            neighbour_decay=self._neighbours.query.decay.copy(),
            popularity=popularity,
            positives=self._user_arrays["positives"][: self.n_users].copy(),
            habit=self._frozen_habit(opens=False),
            opening_weights=self._fixed_arrays["weights"][len(BUCKETS) :].copy(),
            opening_habit=self._frozen_habit(opens=True),
            moments=np.zeros(0, dtype=np.int64) if self._habit is None else self._habit.moments(self.n_users),
            tried_starts=tried_starts,
            tried_items=tried_items,
            buckets=BUCKETS,
            visit_ms=VISIT_MS,
            unknown_popularity=self._popularity.unknown(-1, self._events, ""),
            text_columns=self.text_dimensions if self._texts.described else 0,
            repeats=self.repeats,
        )

    def _frozen_habit(self, *, opens: bool) -> np.ndarray:
        """Return what habit adds to each item of each user's seen ones, in rising order of their rows."""
        total, found = np.zeros(self.n_items, dtype=np.float32), [np.zeros(0, dtype=np.float32)]
        if self._habit is not None:
            for user in range(self.n_users):
                seen = np.sort(self._seen(user))
                self._habit.add(user, self._table_of(user, opens), opens, total)
                found.append(total[seen])
                total[seen] = 0.0
        return np.concatenate(found)
