"""The stream's blend as it answers: the scores that the learner itself would give, and a query's text beside them.

`common.blends.BlendMembers` says what the members are. Where the learner was told the items' texts, its content member
is what the federated side has to say, so it is not added again. Where it was not, likeness to the text vectors of the
served version takes that member's place.

With a query, the blend is brought to a spread of its own over the items, so that the query's share does not depend on
how large the learned weights have become.
"""

from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from common.blends import MEMBERS, BlendMembers
from common.snapshots import MFSnapshot
from server.serving.bundle import Bundle, Stream
from server.serving.fusion import (
    Fused,
    HistorySum,
    Member,
    MemberKind,
    Products,
    factor_sum,
    standardised,
    text_interest,
    text_sum,
)

KINDS: tuple[MemberKind, ...] = ("neighbours", "factors", "text", "popularity")
"""The blend's members, in the order of `common.blends.MEMBERS`; its content is the answer's text."""
QUERY_WEIGHT = 2.0
SPREAD_BESIDE_QUERY = {False: 0.5, True: 1.0}
"""Of the blend beside a query's text, without and with a history; by hand, as `FusionTable`'s weights."""
_LEAST_SPREAD = 1e-6


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
    position
        Place of the asking item in the history, int64 [p]; -1 for one that was tried and not liked.
    item
        Row of the other item, int32 [p].
    amount
        What it gets, float64 [p].
    length
        Of the history.
    n_items
        Of the catalogue.
    """

    position: np.ndarray
    item: np.ndarray
    amount: np.ndarray
    length: int
    n_items: int

    def scores(self) -> np.ndarray:
        """Return the sums, float64 [n]."""
        return np.bincount(self.item, weights=self.amount, minlength=self.n_items)

    def above_average(self, chosen: np.ndarray, over: np.ndarray) -> np.ndarray:
        """Return what each item of the history adds to each chosen row above its average, float64 [c, h]."""
        liked = self.position >= 0
        shown = (self.amount * over[self.item])[liked]
        average = np.bincount(self.position[liked], weights=shown, minlength=self.length) / max(1, int(over.sum()))
        place = np.full(self.n_items, -1, dtype=np.int64)
        place[chosen] = np.arange(len(chosen))
        hit = place[self.item]
        kept = (hit >= 0) & (self.position >= 0)
        added = np.zeros((len(chosen), self.length))
        np.add.at(added, (hit[kept], self.position[kept]), self.amount[kept])
        return added - average


def pairs_of(blend: BlendMembers, tried: np.ndarray, history: np.ndarray) -> PairSum:
    """Return what the neighbours of what was tried add; it and the history are given oldest first."""
    newest = tried[::-1][: len(blend.neighbour_decay)]
    latest = {int(row): place for place, row in enumerate(history)}
    places = np.array([latest.get(int(row), -1) for row in newest], dtype=np.int64)
    starts = blend.pair_starts[newest]
    lengths = blend.pair_starts[newest + 1] - starts
    age = np.repeat(np.arange(len(newest)), lengths)
    before = np.cumsum(lengths) - lengths
    entry = np.arange(len(age)) + (starts - before)[age]
    amount = blend.pair_weights[entry].astype(np.float64) * blend.neighbour_decay[age]
    return PairSum(places[age], blend.pair_items[entry], amount, len(history), len(blend.popularity))


def blended(bundle: Bundle, stream: Stream, blend: BlendMembers, asked: Asked, query: np.ndarray | None) -> Fused:
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
    if not blend.repeats:
        shown[asked.seen] = False
    raw, sums = _raw(bundle, snapshot, blend, asked)
    z, spread = _standardised(raw, shown)
    weights = blend.weights_of(asked.likes, opens=asked.opens)
    again = np.zeros(len(shown))
    again[asked.seen[: len(asked.habit)]] = asked.habit
    scores = weights @ z + again
    members: dict[MemberKind, Member] = {}
    if query is not None:
        share = _beside_query(scores[shown], bool(len(asked.history)))
        weights, again = weights * share, again * share
        asking, own = standardised(bundle.model.item_vectors @ query, shown)
        members["query"] = Member(asking, np.broadcast_to(np.float64(QUERY_WEIGHT), asking.shape), own, shown)
        scores = weights @ z + again + QUERY_WEIGHT * asking
    for place, kind in enumerate(KINDS):
        coefficient = np.broadcast_to(weights[place], scores.shape)
        members[kind] = Member(z[place], coefficient, float(spread[place]), shown, sums.get(kind))
    if len(asked.habit):
        members["habit"] = Member(again, np.ones_like(again), np.inf, shown)
    return Fused(scores, MappingProxyType(members))


def _raw(
    bundle: Bundle, snapshot: MFSnapshot, blend: BlendMembers, asked: Asked
) -> tuple[np.ndarray, dict[MemberKind, HistorySum]]:
    """Return the members' raw scores, float64 [m, n], and how those that are sums over the history come about."""
    raw = np.zeros((len(MEMBERS), len(blend.popularity)))
    history, pairs = asked.history, pairs_of(blend, asked.tried, asked.history)
    raw[0] = pairs.scores()
    raw[1] = snapshot.scores(history)
    raw[3] = blend.popularity
    if not len(history):
        return raw, {}
    factors = factor_sum(snapshot, history)
    sums: dict[MemberKind, HistorySum] = {"neighbours": pairs, "factors": factors}
    if blend.text_columns:
        texts = snapshot.item_factors[:, -blend.text_columns :]
        sums["text"] = Products(texts, texts, history, factors.fading)
        raw[2] = texts @ (factors.fading.astype(np.float32) @ texts[history])
    else:
        vectors = bundle.model.item_vectors
        interest, length = text_interest(vectors, history)
        raw[2] = vectors @ interest.astype(np.float32)
        if (by_text := text_sum(vectors, history, length)) is not None:
            sums["text"] = by_text
    return raw, sums


def _standardised(raw: np.ndarray, over: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return z-scores of all items, float64 [m, n], and the spreads, infinite where a member says nothing."""
    # sums over all less those of the few that are left out: no copy of the rest
    without = raw[:, ~over]
    count = raw.shape[1] - without.shape[1]
    if not count:
        return np.zeros_like(raw), np.full(len(raw), np.inf)
    mean = (raw.sum(axis=1) - without.sum(axis=1)) / count
    squares = np.einsum("mn,mn->m", raw, raw) - np.einsum("mn,mn->m", without, without)
    spread = np.sqrt(np.maximum(0.0, squares / count - mean * mean))
    spread[spread <= _LEAST_SPREAD * np.maximum(1.0, np.abs(mean))] = np.inf
    return (raw - mean[:, None]) / spread[:, None], spread


def _beside_query(shown: np.ndarray, known: bool) -> float:
    """Return the factor that brings the blend's scores to their spread beside a query."""
    spread = float(shown.std()) if len(shown) else 0.0
    return SPREAD_BESIDE_QUERY[known] / spread if spread > _LEAST_SPREAD else 0.0
