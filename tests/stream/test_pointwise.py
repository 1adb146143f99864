"""The pointwise learner beside its slow twin and beside river's own."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from river import optim, reco
from sklearn.linear_model import Ridge

from common.errors import InvalidSetting
from stream.learner.pointwise import FOLD_PENALTY, PointwiseMF, folded_row
from tests.oracles.pointwise import PlainPointwise

_events = st.lists(
    st.tuples(
        st.sampled_from([f"user {n}" for n in range(4)]),
        st.sampled_from([f"item {n}" for n in range(9)]),
        st.sampled_from([1.0, 5.0, 2.5, 0.0, -1.0, 1000.0]),
    ),
    min_size=1,
    max_size=40,
)


def rated(count: int, seed: int = 0) -> list[tuple[str, str, float]]:
    """Ratings of two groups that disagree about two kinds of items."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        group, kind = rng.integers(2, size=2)
        value = 4.5 if group == kind else 1.5
        found.append((f"{group} user {rng.integers(20)}", f"{kind} item {rng.integers(15)}", value))
    return found


@given(events=_events, negatives=st.sampled_from([0, 3]), l2=st.sampled_from([0.0, 0.1]))
def test_it_learns_as_the_slow_twin_does(events: list[tuple[str, str, float]], negatives: int, l2: float) -> None:
    settings: dict[str, Any] = {
        "n_factors": 5,
        "lr": 0.05,
        "bias_lr": 0.025,
        "l2": l2,
        "bias_l2": l2,
        "clip": 10.0,
        "init_scale": 0.1,
    }
    fast = PointwiseMF(**settings, negatives=negatives, seed=3)
    slow = PlainPointwise(**settings, negatives=negatives, seed=3)
    for user, item, y in events:
        fast.learn_one(user, item, y)
        slow.learn(user, item, y)
    for user in {user for user, _, _ in events}:
        for item in fast.item_ids:
            assert fast.predict_one(user, item) == pytest.approx(slow.score(user, item), rel=2e-3, abs=2e-3)


def test_from_the_same_first_rows_it_is_rivers_own() -> None:
    ours = PointwiseMF(seed=1)
    river = reco.BiasedMF(n_factors=10, bias_optimizer=optim.SGD(0.025), latent_optimizer=optim.SGD(0.05))
    for user, item, y in rated(3_000):
        for kind, rows, name in (("user", river.u_latents, user), ("item", river.i_latents, item)):
            if name not in rows:
                rows[name] = ours.initial_row(kind, name).astype(np.float64)
        if user in ours.user_ids and item in ours.item_ids:
            assert ours.predict_one(user, item) == pytest.approx(river.predict_one(user, item), rel=1e-3)
        ours.learn_one(user, item, y)
        river.learn_one(user, item, y)


def test_it_tells_groups_apart_by_their_values() -> None:
    model = PointwiseMF(seed=1)
    for user, item, y in rated(4_000):
        model.learn_one(user, item, y)
    for group in "01":
        best = [item for item, _ in model.top_k(f"{group} user 3", 5, exclude_seen=False)]
        assert all(item.startswith(group) for item in best)


def test_with_negatives_likes_alone_tell_groups_apart() -> None:
    model, rng = PointwiseMF(negatives=5, seed=1), np.random.default_rng(0)
    for _ in range(3_000):
        group = rng.integers(2)
        model.learn_one(f"{group} user {rng.integers(30)}", f"{group} item {rng.integers(40)}")
    for side in "01":
        best = [item for item, _ in model.top_k(f"{side} user 3", 5)]
        assert all(item.startswith(side) for item in best)


def test_a_stranger_is_folded_from_the_history_of_the_question() -> None:
    model, rng = PointwiseMF(negatives=5, seed=1), np.random.default_rng(0)
    for _ in range(3_000):
        group = rng.integers(2)
        model.learn_one(f"{group} user {rng.integers(30)}", f"{group} item {rng.integers(40)}")
    before = model.state_sha256()
    for side in "01":
        best = [item for item, _ in model.top_k("stranger", 5, history=[f"{side} item {n}" for n in (3, 7, 11)])]
        assert all(item.startswith(side) for item in best)
    assert model.state_sha256() == before
    assert model.user_row("stranger") is None


@given(liked=st.integers(0, 12), factors=st.integers(1, 6), seed=st.integers(0, 99))
def test_the_fold_is_the_ridge_of_scikit_learn(liked: int, factors: int, seed: int) -> None:
    rows = np.random.default_rng(seed).standard_normal((liked, factors)).astype(np.float32)
    found = folded_row(rows)
    assert found.dtype == np.float32
    if not liked:
        assert not found.any()
        return
    expected = Ridge(alpha=FOLD_PENALTY, fit_intercept=False).fit(rows.astype(np.float64), np.ones(liked)).coef_
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_wild_values_leave_it_finite() -> None:
    model, rng = PointwiseMF(seed=1, lr=2.0, clip=1e6), np.random.default_rng(0)
    for place in range(300):
        model.learn_one(f"user {place % 3}", f"item {place % 5}", float(rng.choice([-1e30, 1e30])))
    assert all(np.isfinite(array).all() for name, array in model.state_arrays().items() if array.dtype.kind == "f")


def test_a_snapshot_holds_the_rows_of_items() -> None:
    model = PointwiseMF(seed=1)
    for user, item, y in rated(200):
        model.learn_one(user, item, y)
    snapshot = model.snapshot({"clicks": {"0": 7}})
    assert snapshot.item_ids == model.item_ids
    assert np.isfinite(snapshot.scores(model.history_rows("0 user 3"))).all()
    assert snapshot.offsets == {"clicks": {"0": 7}}


@pytest.mark.parametrize(
    "wrong", [{"n_factors": 0}, {"negatives": -1}, {"lr": 0.0}, {"clip": float("inf")}, {"l2": -1}]
)
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidSetting, match=next(iter(wrong))):
        PointwiseMF(**wrong)  # type: ignore[arg-type]  # settings of several types
