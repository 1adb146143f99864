"""The obvious full-rank metric: one event at a time, one candidate at a time."""

import math
from collections.abc import Mapping, Sequence

RECENCY = 10.0
HISTORY = 20
TOP = 10


def evaluate_slowly(
    train: Sequence[tuple[str, int]], test: Sequence[tuple[str, int]], vectors: Sequence[Sequence[float]]
) -> tuple[float, float, int]:
    """Return recall@10, NDCG@10 and the number of events, by the protocol of `server.evaluate`."""
    candidates = sorted({row for _, row in [*train, *test]})
    clicked: dict[str, list[int]] = {}
    for user, row in train:
        clicked.setdefault(user, []).append(row)
    hits, gains, events = 0.0, 0.0, 0
    for user, row in test:
        own = clicked.setdefault(user, [])
        if own and row not in own:
            rank = _rank_slowly(own, row, candidates, vectors)
            events += 1
            if rank <= TOP:
                hits += 1
                gains += 1 / math.log2(1 + rank)
        own.append(row)
    return hits / events, gains / events, events


def _rank_slowly(own: list[int], target: int, candidates: list[int], vectors: Sequence[Sequence[float]]) -> int:
    scores: Mapping[int, float] = {row: _score_slowly(own, row, vectors) for row in candidates if row not in own}
    return sum(1 for score in scores.values() if not score < scores[target])


def _score_slowly(own: list[int], row: int, vectors: Sequence[Sequence[float]]) -> float:
    total = 0.0
    for age, clicked in enumerate(reversed(own[-HISTORY:])):
        total += math.exp(-age / RECENCY) * sum(x * y for x, y in zip(vectors[clicked], vectors[row], strict=True))
    return total
