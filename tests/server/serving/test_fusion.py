"""Members are comparable, weights follow the history, ties are settled, cold items stand where their text puts them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.serving.bundle import Bundle
from server.serving.fusion import (
    FusionTable,
    fuse,
    history_weights,
    standardised,
    text_interest,
)
from server.serving.shortlist import best
from tests.oracles.best import best_slowly
from tests.server.serving.stores import COLD

EVERY = np.ones(20, dtype=bool)
TABLE = FusionTable()


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=40), st.integers(1, 45))
def test_best_is_the_obvious_top_k(rows: list[tuple[int, bool]], k: int) -> None:
    scores = np.array([score for score, _ in rows], dtype=np.float64)
    eligible = np.array([taken for _, taken in rows])
    assert best(scores, eligible, k).tolist() == best_slowly(scores, eligible, k)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=30))
def test_z_scores_have_mean_0_and_spread_1_or_are_all_0(raw: list[float]) -> None:
    z, spread = standardised(np.array(raw, dtype=np.float32), np.ones(len(raw), dtype=bool))
    if np.isinf(spread):
        assert not z.any()
    else:
        assert z.mean() == pytest.approx(0.0, abs=1e-6)
        assert z.std() == pytest.approx(1.0, abs=1e-6)


def test_a_constant_or_empty_member_says_nothing() -> None:
    for over in (np.ones(4, dtype=bool), np.zeros(4, dtype=bool)):
        z, spread = standardised(np.full(4, 7.0, dtype=np.float32), over)
        assert not z.any()
        assert np.isinf(spread)


def test_history_weights_fade_and_end() -> None:
    weights = history_weights(np.arange(4), recency=10.0, window=3)
    assert weights == pytest.approx([0.0, np.exp(-0.2), np.exp(-0.1), 1.0])


def test_text_interest_is_the_unit_sum(bundle: Bundle) -> None:
    vectors = bundle.model.item_vectors
    interest, length = text_interest(vectors, np.array([3, 8]))
    expected = vectors[8] + np.exp(-0.1) * vectors[3]
    assert interest * length == pytest.approx(expected, rel=1e-5)
    assert np.linalg.norm(interest) == pytest.approx(1.0)


@pytest.mark.parametrize(("history", "start"), [(0, 0), (1, 1), (5, 1), (6, 6), (20, 6), (21, 21), (5_000, 21)])
def test_weights_follow_the_length_of_the_history(history: int, start: int) -> None:
    assert TABLE.weights(history) == dict(TABLE.rows)[start]


def test_without_history_and_query_popularity_alone_ranks(bundle: Bundle) -> None:
    fused = fuse(bundle, np.empty(0, dtype=np.int64), None, EVERY, TABLE)
    assert set(fused.members) == {"popularity"}
    assert best(fused.scores, EVERY, 20).tolist() == [*range(18, -1, -1), int(COLD)]


def test_factors_are_the_snapshots_own_scores(bundle: Bundle) -> None:
    history = np.array([0, 2])
    assert bundle.stream is not None
    raw = bundle.stream.snapshot.scores(history).astype(np.float64)
    warm = bundle.counts > 0
    z = fuse(bundle, history, None, EVERY, TABLE).members["factors"].z
    assert z[warm] == pytest.approx((raw[warm] - raw[warm].mean()) / raw[warm].std())


def test_a_cold_item_has_no_factors_and_average_popularity(bundle: Bundle) -> None:
    fused = fuse(bundle, np.array([0, 2]), None, EVERY, TABLE)
    cold = int(COLD)
    assert fused.members["factors"].z[cold] == 0.0
    assert fused.members["popularity"].z[cold] == 0.0
    # on this board text and clicks agree, so text speaks for the missing factors
    text = fused.members["text"].coefficient
    assert text[cold] > text[0] == pytest.approx(TABLE.weights(2).text)
    assert text[cold] <= TABLE.weights(2).text + TABLE.weights(2).factors


def test_a_cold_item_like_the_history_is_not_buried(bundle: Bundle) -> None:
    """Liking the submarine itself says: more submarines; a cold copy of it must come first among the unseen."""
    from dataclasses import replace

    model = bundle.model
    vectors = model.item_vectors.copy()
    vectors[int(COLD)] = vectors[0]  # a black square that nobody clicked yet
    bundle = replace(bundle, model=replace(model, item_vectors=vectors))
    eligible = EVERY.copy()
    eligible[[0, 2]] = False
    fused = fuse(bundle, np.array([0, 2]), None, eligible, TABLE)
    white = [row for row in range(1, 18, 2)]
    assert all(fused.scores[int(COLD)] > fused.scores[row] for row in white)


def test_scores_are_finite_when_nothing_is_eligible(bundle: Bundle) -> None:
    nothing = np.zeros(20, dtype=bool)
    fused = fuse(bundle, np.array([1]), bundle.model.item_vectors[0], nothing, TABLE)
    assert np.isfinite(fused.scores).all()
    assert not len(best(fused.scores, nothing, 5))
