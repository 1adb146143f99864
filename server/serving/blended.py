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

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from common.blends import BlendMembers
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
from server.serving.pairs import pairs_of
from server.serving.raw_scores import LEAST_SPREAD, RawScores
from server.serving.shortlist import QuickScores

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


class Blended:
    """The scores of all items for one question; see `server.serving.fusion.Scored`.

    Made by `blended`.

    Parameters
    ----------
    raw
        What the members say.
    mean, spread
        Of each member over the items that may be shown, float64 [m]; the spread is infinite where it says nothing.
    coefficient
        Of each member, float64 [m].
    sums
        How members come about that are sums over the history.
    quick
        The scores, but for a constant and for rounding.
    again
        Rows with a habit, and what it adds to each, float64.
    shown
        bool [n]: the items that means and spreads are taken over.
    """

    def __init__(
        self,
        raw: RawScores,
        mean: np.ndarray,
        spread: np.ndarray,
        coefficient: np.ndarray,
        sums: Mapping[MemberKind, HistorySum],
        quick: QuickScores,
        again: tuple[np.ndarray, np.ndarray],
        shown: np.ndarray,
    ) -> None:
        self.quick, self._raw, self._mean, self._spread, self._coefficient = quick, raw, mean, spread, coefficient
        self._sums, self._again, self._shown = sums, again, shown

    @property
    def kinds(self) -> tuple[MemberKind, ...]:
        """The members that tell any item from another."""
        told = zip(self._raw.kinds, self._coefficient.tolist(), self._spread.tolist(), strict=True)
        said = [kind for kind, coefficient, spread in told if coefficient and spread < np.inf]
        return (*said, "habit") if self._again[1].any() else tuple(said)

    def shortlist(self, eligible: np.ndarray, wanted: int) -> np.ndarray:
        """Return rows, rising, among which are the best eligible ones, as many as are wanted."""
        return self.quick.shortlist(eligible, wanted)

    def exact(self, rows: np.ndarray) -> np.ndarray:
        """Return the scores of some rows: the sum that `at` gives, without its parts."""
        return self._summed(self._z(rows), self._habits(rows))

    def at(self, rows: np.ndarray) -> Fused:
        """Return the members' opinions on some rows, and their sum."""
        z, habits = self._z(rows), self._habits(rows)
        told = zip(self._raw.kinds, z, self._coefficient.tolist(), self._spread.tolist(), strict=True)
        members: dict[MemberKind, Member] = {
            kind: Member(said, np.full(len(rows), coefficient), spread, self._shown, self._sums.get(kind))
            for kind, said, coefficient, spread in told
        }
        if habits is not None:
            members["habit"] = Member(habits, np.ones(len(rows)), np.inf, self._shown)
        return Fused(self._summed(z, habits), MappingProxyType(members))

    def _z(self, rows: np.ndarray) -> np.ndarray:
        z: np.ndarray = (self._raw.at(rows) - self._mean[:, None]) / self._spread[:, None]
        return z

    def _habits(self, rows: np.ndarray) -> np.ndarray | None:
        habitual, amount = self._again
        if not len(habitual):
            return None
        added = np.zeros(len(self._shown))
        added[habitual] = amount
        of_rows: np.ndarray = added[rows]
        return of_rows

    def _summed(self, z: np.ndarray, habits: np.ndarray | None) -> np.ndarray:
        scores: np.ndarray = self._coefficient @ z
        return scores if habits is None else scores + habits


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
    without = np.empty(0, dtype=np.int64) if blend.repeats else np.unique(asked.seen)
    shown = np.ones(len(bundle.items), dtype=bool)
    shown[without] = False
    raw, sums = _raw_scores(bundle, stream, blend, asked)
    coefficient = blend.weights_of(asked.likes, opens=asked.opens)
    mean, spread = raw.mean_and_spread(without)
    again = asked.seen[: len(asked.habit)], asked.habit.astype(np.float64)
    quick = raw.quick(coefficient / spread)
    if len(again[0]):
        quick = replace(quick, extras=(*quick.extras, (again[0], asked.habit)))
    if query is not None:
        share = _share(raw, quick, shown, known=bool(len(asked.history)))
        quick, again, coefficient = quick.times(share), (again[0], again[1] * share), coefficient * share
        raw = replace(raw, query=bundle.model.product(query), query_sums=bundle.model.sums.of_product(query))
        mean, spread = raw.mean_and_spread(without)
        coefficient = np.concatenate([[QUERY_WEIGHT], coefficient])
        alike = bundle.model.product(query).times(np.float32(QUERY_WEIGHT / spread[0]))
        quick = replace(quick, products=(*quick.products, alike))
    return Blended(raw, mean, spread, coefficient, sums, quick, again, shown)


def _raw_scores(
    bundle: Bundle, stream: Stream, blend: BlendMembers, asked: Asked
) -> tuple[RawScores, Mapping[MemberKind, HistorySum]]:
    """Return what the members say, and how those come about that are sums over the history."""
    snapshot, history = stream.snapshot, asked.history
    factors, width = snapshot.user_factors(history), snapshot.item_factors.shape[1]
    pairs = pairs_of(blend, asked.tried, history)
    neighbours = pairs.summed() if len(pairs.item) else None
    vectors, likeness = np.zeros((2, width), dtype=np.float32), None
    vectors[0] = factors
    if not len(history):
        return RawScores(stream, blend, vectors, neighbours, None), {}
    folded = factor_sum(snapshot, history)
    sums: dict[MemberKind, HistorySum] = {"neighbours": pairs, "factors": folded}
    if blend.text_columns:
        texts = snapshot.item_factors[:, -blend.text_columns :]
        sums["text"] = Products(texts, texts, history, folded.fading)
        vectors[1, -blend.text_columns :] = folded.fading.astype(np.float32) @ texts[history]
    else:
        interest, length = text_interest(bundle.model.item_vectors, history)
        likeness = bundle.model.item_vectors @ interest.astype(np.float32)
        if (by_text := text_sum(bundle.model.item_vectors, history, length)) is not None:
            sums["text"] = by_text
    return RawScores(stream, blend, vectors, neighbours, likeness), sums


def _share(raw: RawScores, quick: QuickScores, shown: np.ndarray, *, known: bool) -> float:
    """Return the factor that brings the blend's scores to their spread beside a query."""
    spread = quick.spread(raw.stream.sums, shown) if raw.likeness is None else float(quick.of_all()[shown].std())
    return SPREAD_BESIDE_QUERY[known] / spread if spread > LEAST_SPREAD else 0.0
