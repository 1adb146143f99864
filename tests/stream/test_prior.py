"""Item rows of factors alone start at what their texts say, move with it, and keep what they learned."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from common.errors import InvalidSetting
from common.store import pack_arrays, unpack_arrays
from stream.learner.mf import MF
from stream.learner.prior import FEWEST_WARM, FIRST_FIT, ridge

SMALL = {"n_factors": 8, "negatives": 6, "window": 10, "seed": 3, "text_dimensions": 6}
ITEMS = [f"i{n}" for n in range(40)]
ROWS = ("history", "factors")
DAY = 86_400_000


def texts(seed: int = 0, apart: float = 2.0) -> np.ndarray:
    """Return vectors whose first two numbers tell even items from odd ones."""
    found = np.random.default_rng(seed).standard_normal((len(ITEMS), 12))
    found[:, :2] += apart * np.where(np.arange(len(ITEMS)) % 2, 1.0, -1.0)[:, None]
    return found


def taught(events: int, hidden: set[str] = frozenset(), **settings: float) -> MF:  # type: ignore[assignment]  # empty
    """Return a learner of users who like even items only or odd items only, never the hidden ones."""
    learner, rng = MF(**{**SMALL, **settings}), np.random.default_rng(1)  # type: ignore[arg-type]  # settings of several types
    learner.describe(ITEMS, texts())
    while learner.events < events:
        user = int(rng.integers(20))
        item = f"i{2 * rng.integers(20) + user % 2}"
        if item not in hidden:
            learner.learn_one(f"u{user}", item)
    return learner


@given(n=st.integers(3, 30), d=st.integers(1, 6), penalty=st.sampled_from([0.1, 1.0, 30.0]), seed=st.integers(0, 99))
def test_the_fit_is_that_of_scikit_learn(n: int, d: int, penalty: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, rows, weights = rng.standard_normal((n, d)), rng.standard_normal((n, 4)) + 2.0, rng.random(n) + 0.1
    expected = Ridge(alpha=penalty).fit(x, rows, sample_weight=weights)
    found = ridge(x, rows, weights, penalty)
    np.testing.assert_allclose(found[:-1].T, expected.coef_, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[-1], expected.intercept_, rtol=1e-4, atol=1e-4)


def test_a_new_item_is_where_its_text_says() -> None:
    hidden = {"i6", "i7"}
    learner = taught(FIRST_FIT, hidden)
    for reader, near, far in (("u0", "i6", "i7"), ("u1", "i7", "i6")):
        assert learner.predict_one(reader, near) > learner.predict_one(reader, far) + 0.2
    state = learner.state_arrays()
    for row in (6, 7):
        for name in ROWS:
            np.testing.assert_allclose(state[f"item.{name}"][row], state[f"item.{name}_prior"][row], atol=1e-6)
    without = taught(FIRST_FIT - 1, hidden).state_arrays()
    start = MF(**SMALL).initial_rows("i6")
    np.testing.assert_array_equal(without["item.factors"][6], start[1])


def test_a_new_version_moves_rows_with_their_priors_and_drops_nothing() -> None:
    learner = taught(FIRST_FIT + 100, {"i6", "i7"}, kappa=10.0)
    before = learner.state_arrays()
    learner.describe(ITEMS, texts(seed=5))
    after = learner.state_arrays()
    likes = before["item.counts"].astype(np.float64)
    share = (10.0 / (likes + 10.0))[:, None]
    assert likes[6] == 0
    assert likes.max() > 30
    for name in ROWS:
        old, new = before[f"item.{name}_prior"].astype(np.float64), after[f"item.{name}_prior"].astype(np.float64)
        assert np.abs(new - old).max() > 0.01
        expected = before[f"item.{name}"] + share * (new - old)
        np.testing.assert_allclose(after[f"item.{name}"], expected, atol=1e-5)
        # without likes: new prior plus what the row was beyond the old one
        np.testing.assert_allclose(after[f"item.{name}"][6], new[6] + before[f"item.{name}"][6] - old[6], atol=1e-5)
    for name in ("item.bias", "item.counts", "item.factors_sum", "user.ring"):
        assert np.array_equal(after[name], before[name])


def test_the_same_vectors_again_change_nothing() -> None:
    learner = taught(FIRST_FIT + 5)
    before, told = learner.state_sha256(), learner.described_by
    learner.describe(ITEMS, texts())
    assert learner.state_sha256() == before
    assert learner.described_by == told != 0


def test_an_item_without_likes_is_no_lesson_but_for_its_bias() -> None:
    learner = taught(FIRST_FIT, {"i6"})
    before = learner.state_arrays()
    for _ in range(50):
        learner.learn_one("new", "i4")
    after = learner.state_arrays()
    assert np.array_equal(after["item.factors"][6], before["item.factors"][6])
    assert after["item.bias"][6] < before["item.bias"][6]
    assert not np.array_equal(after["item.factors"][8], before["item.factors"][8])


def test_too_few_items_with_likes_leave_the_rows_alone() -> None:
    learner = MF(**SMALL)
    learner.describe(ITEMS, texts())
    for item in ITEMS[: FEWEST_WARM - 1]:
        learner.learn_one("u1", item)
    before = learner.state_arrays()["item.factors"]
    learner.describe(ITEMS, texts(seed=9))
    assert np.array_equal(learner.state_arrays()["item.factors"], before)
    learner.learn_one("u1", ITEMS[-1])
    learner.describe(ITEMS, texts(seed=8))
    assert not np.array_equal(learner.state_arrays()["item.factors"], before)


def test_a_restored_learner_fits_at_the_same_event() -> None:
    original = taught(FIRST_FIT - 20)
    restored = MF(**SMALL)
    restored.load_state(unpack_arrays(pack_arrays(original.state_arrays()), "test"))
    events = [(f"u{n % 7}", f"i{n % 40}") for n in range(40)]
    for user, item in events[:30]:
        original.learn_one(user, item)
        restored.learn_one(user, item)
    assert restored.state_sha256() == original.state_sha256()
    original.learn_many([user for user, _ in events], [item for _, item in events])
    for user, item in events:
        restored.learn_one(user, item)
    assert restored.state_sha256() == original.state_sha256()


def test_a_row_whose_time_is_up_goes_back_to_its_text() -> None:
    learner = taught(FIRST_FIT, ttl_days=3.0)
    learner.learn_one("u0", "i2", 1.0, {"ts": 0})
    worn = learner.state_arrays()
    assert not np.array_equal(worn["item.history"][2], worn["item.history_prior"][2])
    for day in (10, 20):  # one event with a wrong date drops nothing, the second one tells
        learner.learn_one("another", "i4", 1.0, {"ts": day * DAY})
    state = learner.state_arrays()
    np.testing.assert_array_equal(state["item.history"][2], state["item.history_prior"][2])


def test_an_item_without_a_text_is_as_before() -> None:
    learner = taught(FIRST_FIT)
    learner.add_items(["no text"])
    history, factors = learner.initial_rows("no text")
    state = learner.state_arrays()
    np.testing.assert_array_equal(state["item.history"][-1], history)
    learner.describe(ITEMS, texts(seed=4))
    np.testing.assert_array_equal(learner.state_arrays()["item.factors"][-1], factors)


def test_texts_are_refused_where_there_is_no_room_for_them() -> None:
    with pytest.raises(InvalidSetting, match="without text_dimensions"):
        MF().describe(ITEMS, texts())
    assert MF().described_by == 0
    assert not any("prior" in name or "described" in name for name in MF().state_arrays())
    with pytest.raises(InvalidSetting, match="text vectors of shape"):
        MF(text_dimensions=4).describe(ITEMS, texts()[:3])
    for name, value in (("text_dimensions", -1), ("kappa", 0.0), ("ridge", float("nan"))):
        with pytest.raises(InvalidSetting, match=name):
            MF(**{name: value})  # type: ignore[arg-type]  # the wrong value is the point
