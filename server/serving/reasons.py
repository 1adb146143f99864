"""Why an item was recommended: parts of its score that add up to it."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from server.serving.bundle import Bundle
from server.serving.fusion import TEXT_RECENCY, TEXT_WINDOW, Fused, Member, history_weights, text_interest

ReasonKind = Literal["because-you-liked", "factors", "text", "query", "popularity"]
NAMED = 3
"""How many liked items are named for one recommendation."""
TRACE = 1e-4
"""A smaller part, of scores around 1, is rounding."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One part of a score.

    Parameters
    ----------
    kind
        "because-you-liked": what one item of the history adds over both factors and text; "factors" and "text": what
        is left of those members; "query" and "popularity": the whole member.
    text
        For people; the liked item's title where there is one.
    weight
        Its share; the weights of all reasons add up to the score.
    """

    kind: ReasonKind
    text: str
    weight: float


def reasons_for(bundle: Bundle, history: np.ndarray, fused: Fused, chosen: np.ndarray) -> list[tuple[Reason, ...]]:
    """Return the reasons of each chosen row, in its order.

    Factors and text are linear in the items of the history and z-scores are affine, so what one liked item adds
    (above what it adds to the average item) is exact, not an approximation.
    """
    liked, where = np.unique(history, return_inverse=True)
    by_factors = _from_factors(bundle, history, fused.members.get("factors"), chosen)
    by_text = _from_text(bundle, history, fused.members.get("text"), chosen)
    to_item = np.zeros((len(history), len(liked)))
    to_item[np.arange(len(history)), where] = 1.0
    by_factors, by_text = by_factors @ to_item, by_text @ to_item
    return [
        _one(bundle, fused, int(row), liked, by_factors[position], by_text[position])
        for position, row in enumerate(chosen)
    ]


def _one(
    bundle: Bundle, fused: Fused, row: int, liked: np.ndarray, by_factors: np.ndarray, by_text: np.ndarray
) -> tuple[Reason, ...]:
    share = {kind: float(member.coefficient[row] * member.z[row]) for kind, member in fused.members.items()}
    together = by_factors + by_text
    reasons: list[Reason] = []
    for position in np.argsort(-together, kind="stable")[:NAMED]:
        if together[position] <= 0.0:
            break
        reasons.append(
            Reason("because-you-liked", bundle.catalogue[int(liked[position])].title, float(together[position]))
        )
        share["factors"] = share.get("factors", 0.0) - float(by_factors[position])
        share["text"] = share.get("text", 0.0) - float(by_text[position])
    count = int(bundle.counts[row])
    words: tuple[tuple[Literal["factors", "text", "query", "popularity"], str], ...] = (
        ("factors", "what the clicks say" if not reasons else "what else the clicks say"),
        ("text", "like your recent items" if not reasons else "like your other recent items"),
        ("query", "close to your query"),
        ("popularity", f"liked {count} times" if count else "nobody has liked it yet"),
    )
    rest = [Reason(kind, text, share[kind]) for kind, text in words if share.get(kind, 0.0) != 0.0]
    if reasons:
        # float32 leaves a trace where nothing is left; it goes to the largest part, so the sum still holds
        trace = sum(reason.weight for reason in rest if abs(reason.weight) < TRACE)
        reasons[0] = replace(reasons[0], weight=reasons[0].weight + trace)
        rest = [reason for reason in rest if abs(reason.weight) >= TRACE]
    return (*reasons, *rest)


def _from_factors(bundle: Bundle, history: np.ndarray, member: Member | None, chosen: np.ndarray) -> np.ndarray:
    """Return what each position of the history adds to each chosen item through the factors, float64 [c, h]."""
    if member is None or bundle.stream is None:
        return np.zeros((len(chosen), len(history)))
    snapshot = bundle.stream.snapshot
    weights = history_weights(history, snapshot.recency, snapshot.window)
    weights /= np.sqrt(weights.sum())
    said = snapshot.history_factors[history].astype(np.float64) * weights[:, None]
    added: np.ndarray = _above_average(snapshot.item_factors, member, chosen) @ said.T
    return added


def _from_text(bundle: Bundle, history: np.ndarray, member: Member | None, chosen: np.ndarray) -> np.ndarray:
    """Return the same through the text."""
    vectors = bundle.model.item_vectors
    length = text_interest(vectors, history)[1] if len(history) else 0.0
    if member is None or length == 0.0:
        return np.zeros((len(chosen), len(history)))
    weights = history_weights(history, TEXT_RECENCY, TEXT_WINDOW) / length
    said = vectors[history].astype(np.float64) * weights[:, None]
    added: np.ndarray = _above_average(vectors, member, chosen) @ said.T
    return added


def _above_average(matrix: np.ndarray, member: Member, chosen: np.ndarray) -> np.ndarray:
    """Return the chosen rows less the average row, in units of the score; 0 where the member knows nothing."""
    if not member.over.any():
        return np.zeros((len(chosen), matrix.shape[1]))
    # a product, not a mean of the rows taken out: no copy of the matrix
    average = (member.over.astype(np.float32) @ matrix) / member.over.sum()
    scale = member.coefficient[chosen] * member.over[chosen] / member.spread
    scaled: np.ndarray = (matrix[chosen].astype(np.float64) - average) * scale[:, None]
    return scaled
