"""The compiled learner against its slow twin."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidSetting
from stream.learner.kernels import rank_among
from stream.learner.mf import MF
from stream.learner.packing import pack_ids, unpack_ids
from stream.learner.rows import grown
from tests.oracles.folded_mf import FoldedMF


@given(
    n_factors=st.integers(1, 33),
    negatives=st.integers(1, 12),
    window=st.integers(1, 6),
    n_items=st.integers(1, 20),
    dislike=st.sampled_from([0.0, 0.1, 1.0]),
    floor=st.sampled_from([0.0, 0.7]),
    seed=st.integers(0, 2**40),
)
def test_it_learns_what_its_slow_twin_learns(
    n_factors: int, negatives: int, window: int, n_items: int, dislike: float, floor: float, seed: int
) -> None:
    rates = {"recency": 3.0, "lr": 0.4, "bias_lr": 0.2, "accumulator": 0.5, "dislike": dislike, "rate_floor": floor}
    sizes = {"n_factors": n_factors, "negatives": negatives, "window": window, "seed": seed}
    fast = MF(**sizes, **rates)  # type: ignore[arg-type]  # settings of several types
    slow = FoldedMF(n_factors=n_factors, negatives=negatives, window=window, seed=seed, **rates)
    rng = np.random.default_rng(seed % 1000)
    for _ in range(40):
        user, item = f"u{rng.integers(4)}", f"i{rng.integers(n_items)}"
        weight = float(rng.choice([1.0, 0.5, 2.0, -1.0]))
        fast.learn_one(user, item, weight)
        slow.learn(user, item, weight)
    assert list(fast.item_ids) == slow.items
    snapshot = fast.snapshot({})
    np.testing.assert_allclose(snapshot.item_factors, [slow.rows[i] for i in slow.items], rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(
        snapshot.history_factors, [slow.history_rows[i] for i in slow.items], rtol=2e-3, atol=2e-4
    )
    np.testing.assert_allclose(snapshot.item_bias, [slow.bias[i] for i in slow.items], rtol=2e-3, atol=2e-4)
    for user in ("u0", "u3", "nobody"):
        slowly = [slow.score(user, item) for item in slow.items]
        np.testing.assert_allclose(fast.scores(user), slowly, rtol=5e-3, atol=1e-3)


def test_the_snapshot_scores_as_the_learner_does() -> None:
    learner, rng = MF(n_factors=8, negatives=4, window=5, seed=2), np.random.default_rng(0)
    for _ in range(200):
        learner.learn_one(f"u{rng.integers(9)}", f"i{rng.integers(30)}")
    snapshot = learner.snapshot({"clicks": {"0": 200}})
    assert snapshot.offsets == {"clicks": {"0": 200}}
    assert (snapshot.events, int(snapshot.item_counts.sum())) == (200, 200)
    for place, user in enumerate(snapshot.user_ids):
        starts = snapshot.history_starts
        history = snapshot.history_items[starts[place] : starts[place + 1]]
        np.testing.assert_array_equal(history, learner.history_rows(user))
        np.testing.assert_allclose(snapshot.scores(history), learner.scores(user), rtol=1e-4, atol=1e-5)
        seen = snapshot.seen_items[snapshot.seen_starts[place] : snapshot.seen_starts[place + 1]]
        np.testing.assert_array_equal(seen, np.sort(learner.seen_rows(user)))
    assert snapshot.history_items.dtype == np.int32
    assert snapshot.history_starts.dtype == snapshot.seen_starts.dtype == np.int64


def test_a_snapshot_does_not_change_with_the_learner() -> None:
    learner = MF(n_factors=4, negatives=2)
    learner.learn_many(["a", "a", "b"], ["x", "y", "z"])
    snapshot = learner.snapshot({})
    before = snapshot.item_factors.copy()
    learner.learn_many(["a"] * 50, ["x", "z"] * 25)
    np.testing.assert_array_equal(snapshot.item_factors, before)


def test_a_disliked_item_sinks_and_nothing_else_moves() -> None:
    learner = MF(n_factors=4, negatives=2)
    learner.learn_many(["a", "a", "b", "b"], ["x", "y", "x", "z"])
    before = {item: learner.predict_one("a", item) for item in learner.item_ids}
    learner.learn_one("a", "z", -1.0)
    after = {item: learner.predict_one("a", item) for item in learner.item_ids}
    assert after["z"] < before["z"]
    assert {item: after[item] for item in "xy"} == {item: before[item] for item in "xy"}
    learner.learn_one("stranger", "x", -1.0)
    assert learner.user_row("stranger") is None


def test_weights_are_relative() -> None:
    """AdaGrad divides by what it has seen, so a constant weight matters only beside where the sums start."""
    light, heavy = (MF(n_factors=4, negatives=2, accumulator=1e-9) for _ in range(2))
    rng = np.random.default_rng(0)
    for _ in range(60):
        user, item = f"u{rng.integers(5)}", f"i{rng.integers(9)}"
        light.learn_one(user, item, 1.0)
        heavy.learn_one(user, item, 3.0)
    np.testing.assert_allclose(light.scores("u1"), heavy.scores("u1"), rtol=1e-2, atol=1e-2)


def test_extreme_feedback_keeps_everything_finite() -> None:
    learner = MF(n_factors=4, negatives=3)
    for weight in (1e30, -1e30, 1e-30, 1.0):
        for turn in range(20):
            learner.learn_one("a", f"i{turn % 7}", weight)
    state = learner.state_arrays()
    bad = [name for name, array in state.items() if array.dtype == np.float32 and not np.isfinite(array).all()]
    assert not bad


@given(
    scores=st.lists(st.sampled_from([0.0, 1.0, 1.5, -2.0, float("nan"), float("inf")]), min_size=1, max_size=30),
    data=st.data(),
)
def test_rank_among_counts_against_the_target(scores: list[float], data: st.DataObject) -> None:
    values = np.array(scores, dtype=np.float32)
    target = data.draw(st.integers(0, len(values) - 1))
    others = [row for row in range(len(values)) if row != target]
    hidden = data.draw(st.lists(st.sampled_from(others), unique=True) if others else st.just([]))
    k = data.draw(st.integers(1, 12))
    rank, best = rank_among(values, np.array(hidden, dtype=np.int64), target, k)
    opened = [row for row in others if row not in hidden]
    expected = 1 + sum(not values[row] < values[target] for row in opened)
    if np.isnan(values[target]):
        expected = len(values)  # nothing is below it, hidden ones included
    assert rank == expected
    usable = sorted(
        (row for row in range(len(values)) if row not in hidden and not np.isnan(values[row])),
        key=lambda row: (-values[row], row),
    )
    assert [row for row in best.tolist() if row >= 0] == usable[:k]


@given(ids=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), unique=True))
def test_ids_survive_packing(ids: list[str]) -> None:
    assert unpack_ids(*pack_ids(ids)) == ids


def test_growth_doubles_and_keeps() -> None:
    array = np.arange(100, dtype=np.int64)
    assert grown(array, 100) is array
    larger = grown(array, 101)
    assert len(larger) == 200
    assert larger[:100].tolist() == array.tolist()
    assert not larger[100:].any()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_factors", 0), ("n_factors", 1.5), ("negatives", 0), ("window", 0), ("seed", None), ("seed", "1"),
        ("lr", 0.0), ("lr", float("nan")), ("lr", True), ("recency", -1.0), ("dislike", -0.1), ("accumulator", 0.0),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be_is_named(name: str, value: object) -> None:
    with pytest.raises(InvalidSetting, match=name):
        MF(**{name: value})  # type: ignore[arg-type]  # the wrong type is the point
