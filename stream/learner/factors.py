"""The factors of `stream.learner.mf` as a part, with item rows that start at what the items' texts say."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from common.compiled import compiled, dot
from common.ids import rng_for, stable_hash
from stream.learner.haste import hastened
from stream.learner.kernels import (
    ItemRows,
    Rule,
    Scratch,
    UserRows,
    draw_unseen,
    fold,
    learn_dislike,
    share_of,
    step_history,
    step_item,
)
from stream.learner.parts import Arrays, Event, Ground, Part, check_counts, check_rates, decay_of
from stream.learner.text import TextSpace

_ONE = np.float32(1.0)


class Taste(NamedTuple):
    """What is learned about texts.

    `matrix`, float32 [d, d], says how a text of the history speaks for another, `tilt`, [d], which texts all like;
    `matrix_sum` [d] and `tilt_sum` [1] are their AdaGrad accumulators.
    """

    matrix: np.ndarray
    tilt: np.ndarray
    matrix_sum: np.ndarray
    tilt_sum: np.ndarray


class Room(NamedTuple):
    """Room to work in: the history's text, what it asks for, and the pull of the drawn items, float32 [d] each."""

    text: np.ndarray
    asked: np.ndarray
    pull: np.ndarray


class Tools(NamedTuple):
    """How the factors learn, and room for it."""

    rule: Rule
    text_rate: np.float32
    scratch: Scratch
    room: Room


@compiled
def ask(taste: Taste, text: np.ndarray, out: np.ndarray) -> None:
    """Write ``tilt + text @ matrix`` to `out`."""
    out[:] = taste.tilt
    for row in range(len(text)):
        share = text[row]
        for place in range(len(out)):
            out[place] += share * taste.matrix[row, place]


@compiled
def score_factors(
    items: ItemRows, taste: Taste, texts: np.ndarray, described: bool, users: UserRows, decay: np.ndarray,
    user: int, vector: np.ndarray, room: Room, out: np.ndarray,
) -> None:  # fmt: skip
    """Fold the user, -1 for nobody, and write the scores to `out`; `vector` and `room` are worked in."""
    vector[:] = np.float32(0.0)
    room.text[:] = np.float32(0.0)
    if user >= 0:
        fold(items.history, users.ring[user], users.positives[user], decay, vector)
        if described:
            fold(texts, users.ring[user], users.positives[user], decay, room.text)
    ask(taste, room.text, room.asked)
    score_both(items, vector, texts, room.asked, described, out)


@compiled
def score_both(
    items: ItemRows, user: np.ndarray, texts: np.ndarray, asked: np.ndarray, described: bool, out: np.ndarray
) -> None:
    """Write ``bias + factors @ user + texts @ asked`` to `out`; the last only where items are described."""
    for row in range(len(out)):
        out[row] = items.bias[row] + dot(items.factors[row], user)
    if described:
        for row in range(len(out)):
            out[row] += dot(texts[row], asked)


@compiled
def step_taste(taste: Taste, text: np.ndarray, pull: np.ndarray, rate: np.float32, rule: Rule) -> None:
    """Move the taste against `pull` (d loss / d asked); `text` is the history's, `rate` that of the matrix."""
    norm = dot(pull, pull)
    taste.tilt_sum[0] += norm
    step = rule.bias_rate * share_of(taste.tilt_sum[0], norm, rule.floor)
    for place in range(len(pull)):
        taste.tilt[place] -= step * pull[place]
    for row in range(len(text)):
        share = text[row]
        if share != np.float32(0.0):
            squared = share * share * norm
            taste.matrix_sum[row] += squared
            step = rate * share_of(taste.matrix_sum[row], squared, rule.floor) * share
            for place in range(len(pull)):
                taste.matrix[row, place] -= step * pull[place]


@compiled
def learn_liked(
    items: ItemRows,
    taste: Taste,
    texts: np.ndarray,
    described: bool,
    users: UserRows,
    counts: np.ndarray,
    tools: Tools,
    n_items: int,
    event: int,
    user: int,
    item: int,
    weight: np.float32,
) -> None:
    """One step of ``-log softmax`` of the item among itself and unseen ones; seen items are marked ``event + 1``."""
    rule, scratch, room = tools.rule, tools.scratch, tools.room
    ring, positives = users.ring[user], users.positives[user]
    scale = fold(items.history, ring, positives, rule.decay, scratch.user)
    if described:
        fold(texts, ring, positives, rule.decay, room.text)
        ask(taste, room.text, room.asked)
    count = draw_unseen(scratch, rule, n_items, event, item, event + 1)
    if count == 0:
        return
    vector, pull, scores = scratch.user, scratch.pull, scratch.scores
    highest = np.float32(-np.inf)
    for place in range(count + 1):
        row = scratch.rows[place]
        scores[place] = items.bias[row] + dot(items.factors[row], vector)
        if described:
            scores[place] += dot(texts[row], room.asked)
        highest = max(highest, scores[place])
    total = np.float32(0.0)
    for place in range(count + 1):
        scores[place] = np.exp(scores[place] - highest)
        total += scores[place]
    pull[:] = np.float32(0.0)
    room.pull[:] = np.float32(0.0)
    norm = dot(vector, vector)
    for place in range(count + 1):
        slope = scores[place] / total
        if place == 0:
            slope -= _ONE
        slope *= weight
        row = scratch.rows[place]
        factors = items.factors[row]
        for factor in range(len(pull)):
            pull[factor] += slope * factors[factor]
        if described:
            text = texts[row]
            for factor in range(len(text)):
                room.pull[factor] += slope * text[factor]
        # an item that nobody liked yet says no more than its text does: only its bias sinks
        known = place == 0 or counts[row] > 0
        step_item(items, row, slope, vector, norm if known else np.float32(0.0), rule)
    step_history(items, ring, positives, scale, pull, rule)
    if described:
        step_taste(taste, room.text, room.pull, tools.text_rate, rule)


def new_room(dimensions: int) -> Room:
    """Return room for texts of so many dimensions."""
    return Room(*(np.zeros(dimensions, dtype=np.float32) for _ in Room._fields))


class FactorsPart(Part):
    r"""Factors with a content prior: ``s_k = b_k + u . Q_k + (t M + m) . x_k``.

    u is folded from V over the recent history as in `MF`, t likewise from the items' text rows x; the taste M and m is
    learned in the same steps as b, V and Q. Q starts at 0 and b too, so an item without clicks is scored by its text
    alone, and moves away from it with each click. Without texts the last term is 0.

    Parameters
    ----------
    texts
        The items' text rows; shared with whoever reads them, and owned by this part.
    n_factors, negatives, window, recency, lr, bias_lr, accumulator, init_scale, dislike, rate_floor, seed
        As for `MF`; `init_scale` is V's.
    text_lr
        AdaGrad's rate of M.
    """

    name = "factors"

    def __init__(
        self,
        texts: TextSpace,
        *,
        n_factors: int,
        negatives: int,
        window: int,
        recency: float,
        lr: float,
        bias_lr: float,
        text_lr: float,
        accumulator: float,
        init_scale: float,
        dislike: float,
        rate_floor: float,
        seed: int,
    ) -> None:
        check_counts({"n_factors": n_factors, "negatives": negatives})
        rates = {"recency": recency, "lr": lr, "bias_lr": bias_lr, "text_lr": text_lr, "accumulator": accumulator}
        check_rates(
            {**rates, "init_scale": init_scale, "dislike": dislike, "rate_floor": rate_floor},
            zero_allowed=frozenset({"dislike", "rate_floor"}),
        )
        self._texts, self._n_factors, self._negatives, self._seed = texts, n_factors, negatives, seed
        self._accumulator, self._init_scale, self._text_lr = accumulator, init_scale, text_lr
        key = np.uint64(stable_hash(seed, "mf-negatives"))
        rates_32 = (np.float32(lr), np.float32(bias_lr), np.float32(dislike))
        self._calm = Rule(decay_of(window, recency), *rates_32, negatives, key, np.float32(rate_floor))
        self.hasten(1.0)

    def hasten(self, boost: float) -> None:
        """Learn at so many times the rates, until told otherwise; callers of `tools` must ask for them anew."""
        self._rule, self._text_rate = hastened(self._calm, boost), np.float32(self._text_lr * boost)

    def item_arrays(self) -> Arrays:
        """Return the item arrays, each of no rows."""
        wide = {name: np.zeros((0, self._n_factors), dtype=np.float32) for name in ("history", "factors")}
        narrow = {name: np.zeros(0, dtype=np.float32) for name in ItemRows._fields if name not in wide}
        return {**wide, **narrow}

    def fixed_arrays(self) -> Arrays:
        """Return the taste as it starts: a text speaks for its like."""
        d = self._texts.dimensions
        return {
            "matrix": np.eye(d, dtype=np.float32),
            "tilt": np.zeros(d, dtype=np.float32),
            "matrix_sum": np.full(d, self._accumulator, dtype=np.float32),
            "tilt_sum": np.full(1, self._accumulator, dtype=np.float32),
        }

    def wire(self, items: Mapping[str, np.ndarray], fixed: Mapping[str, np.ndarray], ground: Ground) -> None:
        """Take up arrays that were replaced."""
        self._items = ItemRows(*(items[name] for name in ItemRows._fields))
        self._taste = Taste(*(fixed[name] for name in Taste._fields))
        self._users, self._counts = ground.users, ground.counts
        self._scratch = Scratch(
            marks=ground.marks,
            rows=np.zeros(self._negatives + 1, dtype=np.int64),
            scores=np.zeros(self._negatives + 1, dtype=np.float32),
            user=np.zeros(self._n_factors, dtype=np.float32),
            pull=np.zeros(self._n_factors, dtype=np.float32),
        )
        self._room = new_room(self._texts.dimensions)

    @property
    def taste(self) -> Taste:
        """What was learned about texts."""
        return self._taste

    @property
    def tools(self) -> Tools:
        """What a compiled caller needs to learn: rule, rate of the taste, and room to work in."""
        return Tools(self._rule, self._text_rate, self._scratch, self._room)

    @property
    def items(self) -> ItemRows:
        """What was learned about items; rows beyond the known ones mean nothing."""
        return self._items

    def initial_row(self, item: str) -> np.ndarray:
        """Return the V, float32 [n_factors], with which the item starts."""
        drawn = rng_for(self._seed, "mf-item", item).standard_normal(self._n_factors)
        row: np.ndarray = (drawn * (self._init_scale / np.sqrt(self._n_factors))).astype(np.float32)
        return row

    def start_item(self, row: int, item: str) -> None:
        """Start V at random, all else at 0."""
        self._items.history[row] = self.initial_row(item)
        for sums in (self._items.history_sum, self._items.factors_sum, self._items.bias_sum):
            sums[row] = self._accumulator

    def restart_item(self, row: int, item: str) -> None:
        """Start the row anew: its text speaks for it again."""
        self._items.factors[row], self._items.bias[row] = 0.0, 0.0
        self.start_item(row, item)

    def score(self, user: int, event: int, out: np.ndarray) -> None:
        """Write the scores."""
        score_factors(
            self._items, self._taste, self._texts.rows, self._texts.described, self._users, self._rule.decay,
            user, np.zeros(self._n_factors, dtype=np.float32), new_room(self._texts.dimensions), out,
        )  # fmt: skip

    def unknown(self, user: int, event: int, item: str) -> float:
        """Return 0: nothing is known of it, not even a text."""
        return 0.0

    def like(self, event: Event) -> None:
        """One step of sampled softmax."""
        learn_liked(
            self._items,
            self._taste,
            self._texts.rows,
            self._texts.described,
            self._users,
            self._counts,
            self.tools,
            event.n_items,
            event.number,
            event.user,
            event.item,
            np.float32(event.weight),
        )

    def relearn(self, users: UserRows, item: int, event: int, n_items: int, rule: Rule) -> None:
        """One step of an item of the past, for user 0 of `users`; the event's marks of the user's seen items stand."""
        tools, texts = self.tools._replace(rule=rule), self._texts
        learn_liked(
            self._items, self._taste, texts.rows, texts.described, users, self._counts, tools, n_items, event, 0, item,
            np.float32(1.0),
        )  # fmt: skip

    @property
    def rule(self) -> Rule:
        """How the factors learn now."""
        return self._rule

    def dislike(self, event: Event) -> None:
        """One step down for the item's own row."""
        learn_dislike(
            self._items, self._users, self._rule, self._scratch, event.user, event.item, np.float32(event.weight)
        )

    def rebase(self, change: np.ndarray) -> None:
        """Carry the taste over to another text space: old text rows are about ``new @ change``, float64 [d, d].

        The taste then says of the new texts what it said of the old ones; biases and factors stay.
        """
        matrix = change @ self._taste.matrix.astype(np.float64) @ change.T
        self._taste.matrix[:] = matrix.astype(np.float32)
        self._taste.tilt[:] = (change @ self._taste.tilt.astype(np.float64)).astype(np.float32)
