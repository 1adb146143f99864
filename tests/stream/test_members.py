"""The members of the blend, each against its slow twin."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InvalidSetting
from stream.learner.content import Content
from stream.learner.neighbours import Neighbours
from stream.learner.popularity import FLOOR, DecayedPopularity
from stream.learner.text import ROWS, change_of, checked_vectors, principal_rows
from tests.oracles.blending import PlainNeighbours, fading_mass

_events = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6), st.sampled_from([1.0, 0.5, 2.0, -1.0])), max_size=50)


@given(
    events=_events,
    window=st.integers(1, 6),
    recency=st.sampled_from([0.4, 2.0, 1e6]),
    alpha=st.sampled_from([0.0, 0.5]),
)
def test_neighbours_learn_what_their_slow_twin_learns(
    events: list[tuple[int, int, float]], window: int, recency: float, alpha: float
) -> None:
    fast = Neighbours(places=64, window=window, gap=3.0, recency=recency, alpha=alpha, beta=0.6, dislike=0.5)
    slow = PlainNeighbours(window=window, gap=3.0, recency=recency, alpha=alpha, beta=0.6, dislike=0.5)
    for user, item, weight in events:
        fast.learn_one(f"u{user}", f"i{item}", weight)
        slow.learn(f"u{user}", f"i{item}", weight)
    for reader in ("u0", "u3", "nobody"):
        slowly = np.array([slow.score(reader, name) for name in fast.item_ids])
        np.testing.assert_allclose(fast.scores(reader), slowly, rtol=1e-4, atol=1e-6)


def test_a_full_row_keeps_its_heavy_pairs() -> None:
    model = Neighbours(places=8, window=1)
    for number in range(300):
        model.learn_many(["a", "a"], ["hub", f"rare {number}"])
        model.learn_many(["b", "b"], ["hub", "often"])
    model.learn_one("new", "hub")
    assert model.top_k("new", 1)[0][0] == "often"


@given(likes=st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=60))
def test_popularity_fades_as_its_slow_twin_does(likes: list[tuple[int, bool]]) -> None:
    model = DecayedPopularity(half_life=5.0, dislike=0.5)
    told: dict[str, list[tuple[int, float]]] = {}
    for event, (item, liked) in enumerate(likes):
        model.learn_one("u", f"i{item}", 1.0 if liked else -1.0)
        told.setdefault(f"i{item}", []).append((event, 1.0 if liked else -0.5))
    expected = [math.log(fading_mass(told[item], len(likes), 5.0) + FLOOR) for item in model.item_ids]
    np.testing.assert_allclose(model.scores("u"), expected, rtol=1e-5, atol=1e-6)


def test_popularity_stays_finite_over_ever_so_many_half_lives() -> None:
    model = DecayedPopularity(half_life=0.1)
    for turn in range(500):
        model.learn_one("u", f"i{turn % 3}")
    scores = model.scores("u")
    assert np.isfinite(scores).all()
    assert model.top_k("new", 1)[0][0] == "i1"


def test_content_finds_what_reads_alike() -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((2, 16))
    ids = [f"{group} {number}" for group in "ab" for number in range(10)]
    vectors = np.concatenate([centres[n] + 0.2 * rng.standard_normal((10, 16)) for n in range(2)])
    model = Content(text_dimensions=4)
    model.describe(ids, vectors)
    model.learn_one("ann", "b 3")
    assert all(item.startswith("b") for item, _ in model.top_k("ann", 9))
    assert model.predict_one("nobody", "a 1") == 0.0


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), dimensions=st.integers(1, 12))
def test_text_rows_are_principal_components_of_length_one(seed: int, dimensions: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((30, 8)) @ rng.standard_normal((8, 8))
    rows = principal_rows(vectors, dimensions)
    assert rows.shape == (30, dimensions)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, rtol=1e-5)
    assert not rows[:, 8:].any()
    kept = slow_principal_rows(vectors, dimensions)
    np.testing.assert_allclose(rows @ rows.T, kept @ kept.T, atol=1e-4)


def slow_principal_rows(vectors: np.ndarray, dimensions: int, every: int = 1) -> np.ndarray:
    """Return the same by another way, all at once and with any signs: from the singular vectors of each so many."""
    mean = vectors[::every].mean(axis=0)
    _, _, axes = np.linalg.svd(vectors[::every] - mean, full_matrices=False)
    kept = ((vectors - mean) @ axes.T)[:, :dimensions]
    found: np.ndarray = kept / np.linalg.norm(kept, axis=1, keepdims=True)
    return found


def test_texts_of_more_items_than_are_taken_at_a_time() -> None:
    rng = np.random.default_rng(2)
    vectors = (rng.standard_normal((2 * ROWS + 5, 4)) * [4.0, 3.0, 2.0, 1.0] + 1.0).astype(np.float32)
    rows, kept = principal_rows(vectors, 3), slow_principal_rows(vectors.astype(np.float64), 3, every=3)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows * np.sign(rows[0]), kept * np.sign(kept[0]), atol=1e-4)
    whole = slow_principal_rows(vectors.astype(np.float64), 3)  # the axes of all would be nearly the same
    assert (rows * np.sign(rows[0]) * whole * np.sign(whole[0])).sum(axis=1).mean() > 0.99
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    new = (rows @ turn).astype(np.float32)
    np.testing.assert_allclose(change_of(rows, new), turn.T, atol=5e-3)
    vectors[-1, 2] = np.nan
    with pytest.raises(InvalidSetting, match="finite"):
        checked_vectors([str(number) for number in range(len(vectors))], vectors)


def test_a_turned_text_space_is_turned_back() -> None:
    rng = np.random.default_rng(0)
    old = rng.standard_normal((200, 6)).astype(np.float32)
    turn, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    new = (old @ turn).astype(np.float32)
    np.testing.assert_allclose(new @ change_of(old, new), old, atol=2e-2)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Neighbours(places=100), "places"), (lambda: Neighbours(places=4), "places"),
        (lambda: Neighbours(gap=0.0), "gap"), (lambda: Neighbours(beta=-1.0), "beta"),
        (lambda: Neighbours(window=0), "window"), (lambda: DecayedPopularity(half_life=float("nan")), "half_life"),
        (lambda: Content(text_dimensions=0), "text_dimensions"),
        (lambda: Content().describe(["a"], np.full((1, 2), np.nan)), "text vectors"),
        (lambda: Content().describe(["a", "a"], np.zeros((2, 2))), "twice"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be_is_named(make: object, named: str) -> None:
    assert callable(make)
    with pytest.raises(InvalidSetting, match=named):
        make()
