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
from server.serving.bundle import Bundle, Model, Stream
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
from server.serving.pairs import pairs_of
from server.serving.raw_scores import KINDS, NO_LIKENESS, Habits, RawScores, raw_scores
from server.serving.shortlist import Product, QuickScores
from server.serving.standing import LEAST_SPREAD

NOTHING = np.empty(0, dtype=np.int64)
QUERY_WEIGHT = 2.0
SPREAD_BESIDE_QUERY = {False: 0.5, True: 1.0}
"""Of the blend beside a query's text, without and with a history; by hand, as `FusionTable`'s weights."""


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
class QueryMember:
    """Likeness to a query, a member beside the blend's: mean and spread over the items that may be shown."""

    product: Product
    mean: float
    spread: float

    def z(self, rows: np.ndarray) -> np.ndarray:
        """Return what it says of some rows, float64."""
        # by einsum: a row's product is the same bits whatever rows are asked for beside it
        raw = np.einsum("rd,d->r", self.product.rows[rows], self.product.vector).astype(np.float64)
        z: np.ndarray = (raw - self.mean) / self.spread
        return z


class Blended:
    """The scores of all items for one question; see `server.serving.fusion.Scored`.

    Made by `blended`.

    Parameters
    ----------
    raw
        What the members say.
    coefficient
        Of each member, float64 [m].
    habits
        Rows with a habit, and what it adds to each, float64.
    query
        The member beside them, whose coefficient is `QUERY_WEIGHT`.
    sums
        Gives how members come about that are sums over the history, which only reasons need.
    """

    def __init__(
        self,
        raw: RawScores,
        coefficient: np.ndarray,
        habits: Habits,
        query: QueryMember | None,
        sums: Callable[[], Mapping[MemberKind, HistorySum]],
    ) -> None:
        self._raw, self._coefficient, self._habits, self._query, self._sums = raw, coefficient, habits, query, sums

    @property
    def kinds(self) -> tuple[MemberKind, ...]:
        """The members that tell any item from another."""
        told = zip(KINDS, self._coefficient.tolist(), self._raw.spread.tolist(), strict=True)
        said = [kind for kind, coefficient, spread in told if coefficient and spread < np.inf]
        if self._query is not None and self._query.spread < np.inf:
            said.insert(0, "query")
        return (*said, "habit") if self._habits[1].any() else tuple(said)

    def quick(self) -> QuickScores:
        """Return the scores but for a constant and for rounding."""
        scores = self._raw.quick(self._coefficient, self._habits)
        if self._query is None:
            return scores
        alike = self._query.product.times(np.float32(QUERY_WEIGHT / self._query.spread))
        return replace(scores, products=(*scores.products, alike))

    def ranked(self, eligible: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the best so many eligible rows, best first, and their scores."""
        if self._query is None:
            return self._raw.ranked(eligible, wanted, self._coefficient, self._habits)
        rows = self.quick().shortlist(eligible, wanted)
        scores = self._exact(rows)
        order = np.argsort(-scores, kind="stable")[:wanted]
        return rows[order], scores[order]

    def at(self, rows: np.ndarray) -> Fused:
        """Return the members' opinions on some rows, and the scores that `ranked` gives them."""
        shown, sums = self._raw.shown, self._sums()
        members: dict[MemberKind, Member] = {}
        if self._query is not None:
            weight = np.full(len(rows), QUERY_WEIGHT)
            members["query"] = Member(self._query.z(rows), weight, self._query.spread, shown)
        told = zip(KINDS, self._raw.z(rows), self._coefficient.tolist(), self._raw.spread.tolist(), strict=True)
        for kind, said, coefficient, spread in told:
            members[kind] = Member(said, np.full(len(rows), coefficient), spread, shown, sums.get(kind))
        habitual, amount = self._habits
        if len(habitual):
            added = np.zeros(len(shown))
            added[habitual] = amount
            members["habit"] = Member(added[rows], np.ones(len(rows)), np.inf, shown)
        return Fused(self._exact(rows), MappingProxyType(members))

    def _exact(self, rows: np.ndarray) -> np.ndarray:
        scores = self._raw.exactly(rows, self._coefficient, self._habits)
        return scores if self._query is None else scores + QUERY_WEIGHT * self._query.z(rows)


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
    history, likeness = asked.history, NO_LIKENESS
    if len(history) and not blend.text_columns:
        interest, _ = text_interest(bundle.model.item_vectors, history)
        likeness = bundle.model.item_vectors @ interest.astype(np.float32)
    without = NOTHING if blend.repeats else asked.seen
    raw = raw_scores(stream, blend, history, asked.tried, without, likeness)
    # a copy, for one that nobody may write to would be compiled for anew
    coefficient = blend.weights_of(asked.likes, opens=asked.opens).copy()
    habits = asked.seen[: len(asked.habit)], asked.habit.astype(np.float64)
    beside = None
    if query is not None:
        share = _share(raw, raw.quick(coefficient, habits), known=bool(len(history)))
        coefficient, habits = coefficient * share, (habits[0], habits[1] * share)
        beside = _query_member(bundle.model, query, raw.shown)
    return Blended(raw, coefficient, habits, beside, lambda: _history_sums(bundle, stream.snapshot, blend, asked))


def _query_member(model: Model, query: np.ndarray, shown: np.ndarray) -> QueryMember:
    """Return likeness to a query, and where it stands over the items that may be shown."""
    product, without = model.product(query), np.flatnonzero(~shown)
    left = (product.rows[without] @ query).astype(np.float64)
    total, squares = model.sums.of_product(query)
    count = len(shown) - len(without)
    if not count:
        return QueryMember(product, 0.0, np.inf)
    mean = (total - float(left.sum())) / count
    spread = float(np.sqrt(max(0.0, (squares - float(left @ left)) / count - mean * mean)))
    return QueryMember(product, mean, spread if spread > LEAST_SPREAD * max(1.0, abs(mean)) else np.inf)


def _history_sums(
    bundle: Bundle, snapshot: MFSnapshot, blend: BlendMembers, asked: Asked
) -> Mapping[MemberKind, HistorySum]:
    """Return how those members come about that are sums over the history."""
    history = asked.history
    if not len(history):
        return {}
    folded = factor_sum(snapshot, history)
    sums: dict[MemberKind, HistorySum] = {"neighbours": pairs_of(blend, asked.tried, history), "factors": folded}
    if blend.text_columns:
        texts = snapshot.item_factors[:, -blend.text_columns :]
        sums["text"] = Products(texts, texts, history, folded.fading)
        return sums
    _, length = text_interest(bundle.model.item_vectors, history)
    if (by_text := text_sum(bundle.model.item_vectors, history, length)) is not None:
        sums["text"] = by_text
    return sums


def _share(raw: RawScores, quick: QuickScores, *, known: bool) -> float:
    """Return the factor that brings the blend's scores to their spread beside a query."""
    if len(raw.likeness):
        spread = float(quick.of_all()[raw.shown].std()) if raw.shown.any() else 0.0
    else:
        spread = quick.spread(raw.stream.sums, raw.shown)
    return SPREAD_BESIDE_QUERY[known] / spread if spread > LEAST_SPREAD else 0.0
