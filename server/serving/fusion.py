"""One score from several opinions: each member is z-scored over the eligible items, then weighted.

This is the answer where the click learner gives factors alone, or nothing yet; what its blend gives is answered by
`server.serving.blended`.

Members are factors (the click learner), text (likeness to the user's recent items), query (likeness to the query's
text) and popularity. Weights depend on how long the history is: without one the factors know nothing, with a long one
they know most.

An item without a single click has no factors and no popularity of its own. What its factors would say is guessed from
its text by linear regression over the clicked items of the same question (the correlation of the two z-scores), and
its popularity counts as average. So it is neither buried nor pushed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, Protocol

import numpy as np

from common.snapshots import MFSnapshot
from server.serving.bundle import Bundle
from server.serving.shortlist import best

MemberKind = Literal["neighbours", "factors", "text", "query", "popularity", "habit"]
TEXT_RECENCY = 10.0
TEXT_WINDOW = 20
"""The text interest of a history is sum exp(-d / TEXT_RECENCY) v over its newest TEXT_WINDOW items."""


@dataclass(frozen=True, slots=True)
class FusionWeights:
    """How much each member counts, all >= 0."""

    factors: float
    text: float
    query: float
    popularity: float


@dataclass(frozen=True, slots=True)
class FusionTable:
    """Weights by length of history.

    The default was chosen on MovieLens-100K between 64% and 80% of its time, and checked on the last 20%
    (`benchmarks/fused_quality.py`); the query's weight is by hand.

    Parameters
    ----------
    rows
        ``(from_length, weights)``, ascending, the first from 0.
    """

    rows: tuple[tuple[int, FusionWeights], ...] = (
        (0, FusionWeights(factors=0.0, text=0.0, query=2.0, popularity=0.5)),
        (1, FusionWeights(factors=1.0, text=0.1, query=2.0, popularity=0.1)),
        (6, FusionWeights(factors=1.0, text=0.1, query=2.0, popularity=0.2)),
        (21, FusionWeights(factors=1.0, text=0.1, query=2.0, popularity=0.0)),
    )

    def weights(self, history: int) -> FusionWeights:
        """Return the weights for a history of so many items."""
        return next(weights for start, weights in reversed(self.rows) if history >= start)


class HistorySum(Protocol):
    """How the raw scores of a member are a sum over the items of the history."""

    def above_average(self, chosen: np.ndarray, over: np.ndarray) -> np.ndarray:
        """Return what each item of the history adds to each chosen row above its average, float64 [c, h].

        The average is over the items in `over`, bool [n].
        """
        ...


@dataclass(frozen=True, slots=True)
class Products:
    """Item j of the history adds ``fading[j] * rows[history[j]] . matrix[k]`` to item k.

    Parameters
    ----------
    matrix, rows
        float32 [n, d].
    history
        Rows, oldest first, int64 [h].
    fading
        float64 [h].
    """

    matrix: np.ndarray
    rows: np.ndarray
    history: np.ndarray
    fading: np.ndarray

    def above_average(self, chosen: np.ndarray, over: np.ndarray) -> np.ndarray:
        """Return what each item of the history adds to each chosen row above its average, float64 [c, h]."""
        # a product, not a mean of the rows taken out: no copy of the matrix
        average = (over.astype(np.float32) @ self.matrix) / max(1, int(over.sum()))
        said = self.rows[self.history].astype(np.float64) * self.fading[:, None]
        added: np.ndarray = (self.matrix[chosen].astype(np.float64) - average) @ said.T
        return added


@dataclass(frozen=True, slots=True)
class Member:
    """One member's opinion.

    Parameters
    ----------
    z
        float64 [n]: ``(raw - mean) / spread``, 0 where the member knows nothing.
    coefficient
        float64 [n]: its weight for each item.
    spread
        Standard deviation of the raw scores; infinite when they are all the same, and z is 0 then.
    over
        bool [n]: the items that mean and spread are taken over.
    by_history
        What each item of the history adds, where the member is such a sum.
    """

    z: np.ndarray
    coefficient: np.ndarray
    spread: float
    over: np.ndarray
    by_history: HistorySum | None = None

    @property
    def says_something(self) -> bool:
        """Whether it tells any item from another."""
        return bool(np.any(self.coefficient * self.z))


@dataclass(frozen=True, slots=True)
class Fused:
    """The members' opinions on n items, or on some of them, and their weighted sum, float64 [n]."""

    scores: np.ndarray
    members: Mapping[MemberKind, Member]

    @property
    def kinds(self) -> tuple[MemberKind, ...]:
        """The members that tell any item from another."""
        return tuple(kind for kind, member in self.members.items() if member.says_something)

    def ranked(self, eligible: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the best so many eligible rows, best first, and their scores."""
        rows = best(self.scores, eligible, wanted)
        return rows, self.scores[rows]

    def at(self, rows: np.ndarray) -> "Fused":
        """Return what is said of some rows."""
        said = {
            kind: replace(member, z=member.z[rows], coefficient=member.coefficient[rows])
            for kind, member in self.members.items()
        }
        return Fused(self.scores[rows], MappingProxyType(said))


class Scored(Protocol):
    """The scores of all items for one question."""

    @property
    def kinds(self) -> tuple[MemberKind, ...]:
        """The members that tell any item from another."""
        ...

    def ranked(self, eligible: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the best so many eligible rows, best first, and their scores, float64."""
        ...

    def at(self, rows: np.ndarray) -> Fused:
        """Return what is said of some rows, in their order."""
        ...


def history_weights(history: np.ndarray, recency: float, window: int) -> np.ndarray:
    """Return exp(-d / recency) for each item of a history given oldest first, float64; 0 beyond the window."""
    distance = np.arange(len(history), dtype=np.float64)[::-1]
    weights: np.ndarray = np.where(distance < window, np.exp(-distance / recency), 0.0)
    return weights


def text_interest(vectors: np.ndarray, history: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the unit vector of a history's text, float64 [d], and the length it had; zeros for no history."""
    summed = history_weights(history, TEXT_RECENCY, TEXT_WINDOW) @ vectors[history].astype(np.float64)
    length = float(np.linalg.norm(summed))
    return (summed / length if length > 0.0 else summed), length


def standardised(raw: np.ndarray, over: np.ndarray) -> tuple[np.ndarray, float]:
    """Return z-scores, float64 [n], 0 outside `over`, and the standard deviation over it (inf for a constant)."""
    z = np.zeros(len(raw), dtype=np.float64)
    taken = raw[over].astype(np.float64)
    if not len(taken):
        return z, float("inf")
    centred = taken - taken.mean()
    spread = float(centred.std())
    if spread <= 1e-9 * max(1.0, float(np.abs(taken).max())):
        return z, float("inf")
    z[over] = centred / spread
    return z, spread


def fuse(
    bundle: Bundle,
    history: np.ndarray,
    query: np.ndarray | None,
    eligible: np.ndarray,
    table: FusionTable,
) -> Fused:
    """Score every eligible item.

    Parameters
    ----------
    history
        Item rows, oldest first.
    query
        Unit vector of the query's text, float32 [d], or None.
    eligible
        bool [n]; the others' scores mean nothing.
    """
    weights = table.weights(len(history))
    vectors = bundle.model.item_vectors
    warm = bundle.counts > 0
    clicked = eligible & warm
    asked = bool(len(history)) or query is not None
    members: dict[MemberKind, Member] = {}

    def join(
        kind: MemberKind,
        raw: np.ndarray,
        over: np.ndarray,
        weight: float | np.ndarray,
        by_history: HistorySum | None = None,
    ) -> np.ndarray:
        z, spread = standardised(raw, over)
        # outside `over` the member says nothing, of the history's items neither
        members[kind] = Member(z, np.where(over, weight, 0.0), spread, over, by_history)
        return z

    if len(history):
        interest, length = text_interest(vectors, history)
        text, guess = vectors @ interest.astype(np.float32), 0.0
        if bundle.stream is not None:
            snapshot = bundle.stream.snapshot
            factors = join("factors", snapshot.scores(history), clicked, weights.factors, factor_sum(snapshot, history))
            guess = max(0.0, float(_mean_product(factors, standardised(text, clicked)[0], clicked)))
        join(
            "text",
            text,
            eligible,
            weights.text + weights.factors * guess * ~warm,
            text_sum(vectors, history, length),
        )
    if query is not None:
        join("query", vectors @ query, eligible, weights.query)
    join("popularity", np.log1p(bundle.counts), clicked if asked else eligible, weights.popularity)
    scores = np.zeros(len(vectors), dtype=np.float64)
    for member in members.values():
        scores += member.coefficient * member.z
    return Fused(scores, MappingProxyType(members))


def factor_sum(snapshot: MFSnapshot, history: np.ndarray) -> Products:
    """Return how the factors' raw scores, biases apart, are a sum over the history."""
    fading = history_weights(history, snapshot.recency, snapshot.window)
    return Products(snapshot.item_factors, snapshot.history_factors, history, fading / np.sqrt(fading.sum()))


def text_sum(vectors: np.ndarray, history: np.ndarray, length: float) -> Products | None:
    """Return how likeness to a history's text is a sum over it; `length` as `text_interest` gives it."""
    if length == 0.0:
        return None
    return Products(vectors, vectors, history, history_weights(history, TEXT_RECENCY, TEXT_WINDOW) / length)


def _mean_product(one: np.ndarray, other: np.ndarray, over: np.ndarray) -> float:
    return float(np.mean(one[over] * other[over])) if over.any() else 0.0
