"""The served blend, member by member over all items, without sums that were taken beforehand."""

import numpy as np

from server.serving.blended import QUERY_WEIGHT, SPREAD_BESIDE_QUERY, Asked
from server.serving.bundle import Bundle
from server.serving.fusion import text_interest


def blended_slowly(bundle: Bundle, asked: Asked, query: np.ndarray | None) -> np.ndarray:
    """Return the score of every item, float64 [n]."""
    assert bundle.stream is not None
    snapshot, blend = bundle.stream.snapshot, bundle.stream.snapshot.blend
    assert blend is not None
    n, history = len(bundle.items), asked.history
    shown = np.ones(n, dtype=bool)
    if not blend.repeats:
        shown[asked.seen] = False
    raw = np.zeros((4, n))
    for age, row in enumerate(asked.tried[::-1][: len(blend.neighbour_decay)]):
        for entry in range(blend.pair_starts[row], blend.pair_starts[row + 1]):
            raw[0, blend.pair_items[entry]] += float(blend.pair_weights[entry]) * float(blend.neighbour_decay[age])
    raw[1] = snapshot.scores(history)
    if len(history) and blend.text_columns:
        texts = snapshot.item_factors[:, -blend.text_columns :].astype(np.float64)
        newest = history[::-1][: snapshot.window]
        fading = np.exp(-np.arange(len(newest)) / snapshot.recency)
        raw[2] = texts @ (fading @ texts[newest]) / np.sqrt(fading.sum())
    elif len(history):
        raw[2] = bundle.model.item_vectors @ text_interest(bundle.model.item_vectors, history)[0]
    raw[3] = blend.popularity
    z = np.array([_z(each, shown) for each in raw])
    again = np.zeros(n)
    again[asked.seen[: len(asked.habit)]] = asked.habit
    scores: np.ndarray = blend.weights_of(asked.likes, opens=asked.opens) @ z + again
    if query is not None:
        spread = float(scores[shown].std())
        share = SPREAD_BESIDE_QUERY[bool(len(history))] / spread if spread > 1e-6 else 0.0
        scores = share * scores + QUERY_WEIGHT * _z(bundle.model.item_vectors.astype(np.float64) @ query, shown)
    return scores


def _z(raw: np.ndarray, shown: np.ndarray) -> np.ndarray:
    taken = raw[shown]
    if not len(taken) or taken.std() <= 1e-6 * max(1.0, abs(float(taken.mean()))):
        return np.zeros(len(raw))
    standard: np.ndarray = (raw - taken.mean()) / taken.std()
    return standard
