"""The stream's blend as it answers: the scores that the learner itself would give, and a query's text beside them.

`common.blends.BlendMembers` says what the members are. Where the learner was told the items' texts, its content member
is what the federated side has to say, so it is not added again. Where it was not, likeness to the text vectors of the
served version takes that member's place.

With a query, the blend is brought to a spread of its own over the items, so that the query's share does not depend on
how large the learned weights have become.

A z-score is a raw score less a mean, over a spread, and most raw scores are products of an item's row. So all members
together are one product of each row with one vector, once means and spreads are known, and these follow from sums that
were taken beforehand (`server.serving.sums`). That single pass finds the items that come into question; their members
and scores are then worked out one by one, in float64.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from common.blends import BlendMembers
from common.snapshots import MFSnapshot
from server.serving.bundle import Bundle, Stream
from server.serving.fusion import (
    Fused,
    HistorySum,
    Member,
    MemberKind,
    Products,
    factor_sum,
    text_interest,
    text_sum,
)
from server.serving.shortlist import Product, QuickScores

KINDS: tuple[MemberKind, ...] = ("neighbours", "factors", "text", "popularity")
"""The blend's members, in the order of `common.blends.MEMBERS`; its content is the answer's text."""
QUERY_WEIGHT = 2.0
SPREAD_BESIDE_QUERY = {False: 0.5, True: 1.0}
"""Of the blend beside a query's text, without and with a history; by hand, as `FusionTable`'s weights."""
_LEAST_SPREAD = 1e-6
_ENTRY_BITS = 31
_COLUMNS: tuple[MemberKind, ...] = ("factors", "popularity")
"""Whose biases, and whose scores, stand beside the item rows, in this order, in the snapshot's sums as well."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Whom an answer is for.

    Parameters
    ----------
    history
        Liked item rows, int64 [h], oldest first.
    likes
        How many there are in all; the oldest may be missing in `history`.
    seen
        Rows of all items liked.
    habit
        What habit adds to the first items of `seen`, float32.
    tried
        Rows of the items tried, liked or not, int64 [t], oldest first: what neighbours go by.
    opens
        Whether the question opens a visit; `habit` is as of then.
    """

    history: np.ndarray
    likes: int
    seen: np.ndarray
    habit: np.ndarray
    tried: np.ndarray
    opens: bool = False


@dataclass(frozen=True, slots=True)
class PairSum:
    """What neighbours add, one entry for each pair of an asking item and another one.

    Parameters
    ----------
    newest
        Rows of the asking items, newest first, int64 [q].
    age
        Place of each pair's asking item in `newest`, int64 [p].
    item
        Row of the other item, int32 [p].
    amount
        What it gets, float64 [p].
    history
        Rows of the items liked, oldest first.
    n_items
        Of the catalogue.
    """

    newest: np.ndarray
    age: np.ndarray
    item: np.ndarray
    amount: np.ndarray
    history: np.ndarray
    n_items: int

    def summed(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the items that get something, rising, int64, and what each gets, float64."""
        # place and number as one whole number: sorted fast, and each item's amounts stay in their order
        entry = np.arange(len(self.item))
        order = np.sort((self.item.astype(np.int64) << _ENTRY_BITS) | entry) & ((1 << _ENTRY_BITS) - 1)
        items = self.item[order].astype(np.int64)
        first = np.flatnonzero(np.diff(items, prepend=-1))
        return items[first], np.add.reduceat(self.amount[order], first) if len(first) else self.amount

    def above_average(self, chosen: np.ndarray, over: np.ndarray) -> np.ndarray:
        """Return what each item of the history adds to each chosen row above its average, float64 [c, h]."""
        # an item that was tried and not liked has no place in the history
        latest = {row: place for place, row in enumerate(self.history.tolist())}
        position = np.array([latest.get(row, -1) for row in self.newest.tolist()], dtype=np.int64)[self.age]
        liked, length = position >= 0, len(self.history)
        shown = (self.amount * over[self.item])[liked]
        average = np.bincount(position[liked], weights=shown, minlength=length) / max(1, int(over.sum()))
        place = np.full(self.n_items, -1, dtype=np.int64)
        place[chosen] = np.arange(len(chosen))
        hit = place[self.item]
        kept = (hit >= 0) & liked
        added = np.zeros((len(chosen), length))
        np.add.at(added, (hit[kept], position[kept]), self.amount[kept])
        return added - average


def pairs_of(blend: BlendMembers, tried: np.ndarray, history: np.ndarray) -> PairSum:
    """Return what the neighbours of what was tried add; it and the history are given oldest first."""
    newest = tried[::-1][: len(blend.neighbour_decay)]
    starts = blend.pair_starts[newest]
    lengths = blend.pair_starts[newest + 1] - starts
    age = np.repeat(np.arange(len(newest)), lengths)
    before = np.cumsum(lengths) - lengths
    entry = np.arange(len(age)) + (starts - before)[age]
    amount = blend.pair_weights[entry].astype(np.float64) * blend.neighbour_decay[age]
    return PairSum(newest, age, blend.pair_items[entry], amount, history, len(blend.popularity))


@dataclass(frozen=True, slots=True)
class _Raw:
    """The raw scores of one member.

    Parameters
    ----------
    total, squares
        Their sum and the sum of their squares, over all items.
    at
        Gives them for some rows, float64.
    """

    total: float
    squares: float
    at: Callable[[np.ndarray], np.ndarray]

    @classmethod
    def dense(cls, scores: np.ndarray) -> "_Raw":
        """Of scores that are there for all items."""
        exact = scores.astype(np.float64, copy=False)
        return cls(float(exact.sum()), float(exact @ exact), lambda rows: exact[rows])

    @classmethod
    def sparse(cls, items: np.ndarray, scores: np.ndarray) -> "_Raw":
        """Of some items' scores, float64; the others, of which there are some, have 0. The items rise."""

        def at(rows: np.ndarray) -> np.ndarray:
            place = np.minimum(np.searchsorted(items, rows), len(items) - 1)
            found: np.ndarray = np.where(items[place] == rows, scores[place], 0.0)
            return found

        return cls(float(scores.sum()), float(scores @ scores), at)

    def over(self, without: np.ndarray, items: int) -> tuple[float, float]:
        """Return mean and spread over all items but a few rows; the spread is infinite where it says nothing."""
        count = items - len(without)
        if not count:
            return 0.0, np.inf
        left = self.at(without)
        mean = (self.total - float(left.sum())) / count
        spread = float(np.sqrt(max(0.0, (self.squares - float(left @ left)) / count - mean * mean)))
        return mean, np.inf if spread <= _LEAST_SPREAD * max(1.0, abs(mean)) else spread


_NOTHING = _Raw(0.0, 0.0, lambda rows: np.zeros(len(rows)))


@dataclass(frozen=True, slots=True)
class _Placed:
    """One member with its place in the score: ``coefficient * (raw - mean) / spread``."""

    kind: MemberKind
    raw: _Raw
    mean: float
    spread: float
    coefficient: float
    by_history: HistorySum | None = None


class Blended:
    """The scores of all items for one question; see `server.serving.fusion.Scored`.

    Made by `blended`.

    Parameters
    ----------
    quick
        The scores, but for a constant and for rounding.
    placed
        The members.
    again
        Rows with a habit, and what it adds to each, float64.
    shown
        bool [n]: the items that means and spreads are taken over.
    """

    def __init__(
        self, quick: QuickScores, placed: list[_Placed], again: tuple[np.ndarray, np.ndarray], shown: np.ndarray
    ) -> None:
        self.quick, self._placed, self._again, self._shown = quick, placed, again, shown

    def shortlist(self, eligible: np.ndarray, wanted: int) -> np.ndarray:
        """Return rows, rising, among which are the best eligible ones, as many as are wanted."""
        return self.quick.shortlist(eligible, wanted)

    @property
    def kinds(self) -> tuple[MemberKind, ...]:
        """The members that tell any item from another."""
        said = [each.kind for each in self._placed if each.coefficient and np.isfinite(each.spread)]
        return (*said, "habit") if self._again[1].any() else tuple(said)

    def exact(self, rows: np.ndarray) -> np.ndarray:
        """Return the scores of some rows: the sum that `at` gives, without its parts."""
        scores = np.zeros(len(rows))
        for each in self._placed:
            scores += each.coefficient * ((each.raw.at(rows) - each.mean) / each.spread)
        habitual, amount = self._again
        if len(habitual):
            added = np.zeros(len(self._shown))
            added[habitual] = amount
            scores += added[rows]
        return scores

    def at(self, rows: np.ndarray) -> Fused:
        """Return the members' opinions on some rows, and their sum."""
        members: dict[MemberKind, Member] = {}
        scores = np.zeros(len(rows))
        for each in self._placed:
            z = (each.raw.at(rows) - each.mean) / each.spread
            members[each.kind] = Member(
                z, np.full(len(rows), each.coefficient), each.spread, self._shown, each.by_history
            )
            scores += each.coefficient * z
        habitual, amount = self._again
        if len(habitual):
            added = np.zeros(len(self._shown))
            added[habitual] = amount
            members["habit"] = Member(added[rows], np.ones(len(rows)), np.inf, self._shown)
            scores += added[rows]
        return Fused(scores, MappingProxyType(members))


def blended(bundle: Bundle, stream: Stream, blend: BlendMembers, asked: Asked, query: np.ndarray | None) -> Blended:
    """Score every item as the stream's blend does, beside a query where there is one.

    Parameters
    ----------
    stream, blend
        The bundle's.
    asked
        Whom for.
    query
        Unit vector of the query's text, float32 [d], or None.
    """
    snapshot = stream.snapshot
    shown = np.ones(len(snapshot.item_bias), dtype=bool)
    without = np.empty(0, dtype=np.int64) if blend.repeats else np.unique(asked.seen)
    shown[without] = False
    sums = _history_sums(bundle, snapshot, blend, asked)
    factors, texts = _users(snapshot, blend, asked.history, sums)
    pairs, likeness = _pair_sums(blend, asked, sums), _likeness(bundle, blend, asked)
    raws = _raws(stream, blend, factors, texts, pairs, likeness)
    weights = blend.weights_of(asked.likes, opens=asked.opens)
    placed = [
        _Placed(kind, raw, *raw.over(without, len(shown)), float(weight), sums.get(kind))
        for kind, raw, weight in zip(KINDS, raws, weights, strict=True)
    ]
    again = asked.seen[: len(asked.habit)], asked.habit.astype(np.float64)
    quick = _quick(stream, blend, placed, factors, texts, pairs, likeness)
    if len(again[0]):
        quick = replace(quick, extras=(*quick.extras, (again[0], asked.habit)))
    if query is not None:
        share = _share(stream, quick, shown, known=bool(len(asked.history)))
        alike = bundle.model.product(query)
        sums_of_all = bundle.model.sums.of_product(query)
        asking = _Raw(*sums_of_all, lambda rows: (alike.rows[rows] @ query).astype(np.float64))
        placed = [replace(each, coefficient=each.coefficient * share) for each in placed]
        again = again[0], again[1] * share
        wanted = _Placed("query", asking, *asking.over(without, len(shown)), QUERY_WEIGHT)
        quick = quick.times(share)
        quick = replace(quick, products=(*quick.products, alike.times(np.float32(QUERY_WEIGHT / wanted.spread))))
        placed.insert(0, wanted)
    return Blended(quick, placed, again, shown)


def _users(
    snapshot: MFSnapshot, blend: BlendMembers, history: np.ndarray, sums: Mapping[MemberKind, HistorySum]
) -> tuple[np.ndarray, np.ndarray]:
    """Return what item rows are multiplied with, float32: for the factors [k], and for the texts, or [0] without."""
    by_text = sums.get("text")
    if not blend.text_columns or not isinstance(by_text, Products):
        return snapshot.user_factors(history), np.empty(0, dtype=np.float32)
    return snapshot.user_factors(history), by_text.fading.astype(np.float32) @ by_text.rows[history]


def _history_sums(
    bundle: Bundle, snapshot: MFSnapshot, blend: BlendMembers, asked: Asked
) -> dict[MemberKind, HistorySum]:
    """Return how the members that are sums over the history come about."""
    history = asked.history
    if not len(history):
        return {}
    factors = factor_sum(snapshot, history)
    sums: dict[MemberKind, HistorySum] = {"neighbours": pairs_of(blend, asked.tried, history), "factors": factors}
    if blend.text_columns:
        texts = snapshot.item_factors[:, -blend.text_columns :]
        sums["text"] = Products(texts, texts, history, factors.fading)
    else:
        vectors = bundle.model.item_vectors
        if (by_text := text_sum(vectors, history, text_interest(vectors, history)[1])) is not None:
            sums["text"] = by_text
    return sums


def _pair_sums(
    blend: BlendMembers, asked: Asked, sums: Mapping[MemberKind, HistorySum]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the items that neighbours say something of, and what, float64; None where there is no such item."""
    pairs = sums.get("neighbours") or pairs_of(blend, asked.tried, asked.history)
    return pairs.summed() if isinstance(pairs, PairSum) and len(pairs.item) else None


def _likeness(bundle: Bundle, blend: BlendMembers, asked: Asked) -> np.ndarray | None:
    """Return how like the history each item's text is, float32 [n]; None where the blend says that, or nobody."""
    if not len(asked.history) or blend.text_columns:
        return None
    vectors = bundle.model.item_vectors
    alike: np.ndarray = vectors @ text_interest(vectors, asked.history)[0].astype(np.float32)
    return alike


def _raws(
    stream: Stream,
    blend: BlendMembers,
    factors: np.ndarray,
    texts: np.ndarray,
    pairs: tuple[np.ndarray, np.ndarray] | None,
    likeness: np.ndarray | None,
) -> tuple[_Raw, ...]:
    """Return the members' raw scores, in the order of `KINDS`."""
    snapshot, sums = stream.snapshot, stream.sums
    rows, bias, width = snapshot.item_factors, snapshot.item_bias, len(texts)
    by_factors = _Raw(
        *sums.of_product(factors, 1.0),
        lambda at: (bias[at] + rows[at] @ factors).astype(np.float64),
    )
    by_text = _NOTHING if likeness is None else _Raw.dense(likeness)
    if width:
        padded = np.concatenate([np.zeros(rows.shape[1] - width, dtype=np.float32), texts])
        by_text = _Raw(*sums.of_product(padded), lambda at: (rows[at, -width:] @ texts).astype(np.float64))
    by_neighbours = _NOTHING if pairs is None else _Raw.sparse(*pairs)
    popular = blend.popularity
    nothing = np.zeros(rows.shape[1])
    by_popularity = _Raw(*sums.of_product(nothing, 0.0, 1.0), lambda at: popular[at].astype(np.float64))
    return by_neighbours, by_factors, by_text, by_popularity


def _quick(
    stream: Stream,
    blend: BlendMembers,
    placed: list[_Placed],
    factors: np.ndarray,
    texts: np.ndarray,
    pairs: tuple[np.ndarray, np.ndarray] | None,
    likeness: np.ndarray | None,
) -> QuickScores:
    """Return the scores of all items, but for a constant, as one pass over their rows gives them."""
    snapshot = stream.snapshot
    scale = {each.kind: np.float32(each.coefficient / each.spread) for each in placed}
    weights = scale["factors"] * factors
    if len(texts):
        weights[-len(texts) :] += scale["text"] * texts
    held = {"factors": snapshot.item_bias, "popularity": blend.popularity}
    columns = [(held[kind], scale[kind]) for kind in _COLUMNS]
    if likeness is not None:
        columns.append((likeness, scale["text"]))
    extras = () if pairs is None else ((pairs[0], scale["neighbours"] * pairs[1].astype(np.float32)),)
    return QuickScores((Product(snapshot.item_factors, weights, stream.coarse),), tuple(columns), extras)


def _share(stream: Stream, quick: QuickScores, shown: np.ndarray, *, known: bool) -> float:
    """Return the factor that brings the blend's scores to their spread beside a query."""
    summed = len(quick.columns) == len(_COLUMNS)
    spread = quick.spread(stream.sums, shown) if summed else float(quick.of_all()[shown].std())
    return SPREAD_BESIDE_QUERY[known] / spread if spread > _LEAST_SPREAD else 0.0
