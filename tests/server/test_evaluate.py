"""The metric against plain loops, and the traps of a metric: ties, NaN, repeats, users as wholes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import EmptyData
from common.ids import rng_for
from server.evaluate import at_random, bootstrap, build_test, by_popularity, by_text, control_rows, measure
from tests.oracles.ranking import evaluate_slowly

ITEMS = 25
clicks = st.lists(st.tuples(st.sampled_from("uvwx"), st.integers(0, ITEMS - 1)), max_size=60)


def vectors(seed: int, dimension: int = 4) -> np.ndarray:
    return rng_for("vectors", seed).standard_normal((ITEMS, dimension)).astype(np.float32)


@settings(max_examples=60)
@given(clicks, clicks, st.integers(0, 99))
def test_it_equals_the_plain_loops(train: list[tuple[str, int]], test: list[tuple[str, int]], seed: int) -> None:
    try:
        events = build_test(train, test, ITEMS)
    except EmptyData:
        with pytest.raises(ZeroDivisionError):
            evaluate_slowly(train, test, vectors(seed).tolist())
        return
    quality = measure(events, by_text(events, vectors(seed)))
    recall, ndcg, count = evaluate_slowly(train, test, vectors(seed).tolist())
    assert quality.recall == pytest.approx(recall, abs=1e-9)
    assert quality.ndcg == pytest.approx(ndcg, abs=1e-9)
    assert quality.events == count


@settings(max_examples=10)
@given(clicks.filter(lambda train: len(train) > 5), clicks.filter(lambda test: len(test) > 30), st.integers(0, 9))
def test_long_histories_use_the_last_twenty_clicks(
    train: list[tuple[str, int]], test: list[tuple[str, int]], seed: int
) -> None:
    one_user = [("u", row) for _, row in train * 4], [("u", row) for _, row in test]
    try:
        events = build_test(*one_user, ITEMS)
    except EmptyData:
        return
    quality = measure(events, by_text(events, vectors(seed)))
    assert quality.recall == pytest.approx(evaluate_slowly(*one_user, vectors(seed).tolist())[0], abs=1e-9)


TRAIN = [("u", row) for row in range(3)]
TEST = [("u", row) for row in range(3, 15)]


def test_ties_count_against_the_model() -> None:
    events = build_test(TRAIN, TEST, ITEMS)
    quality = measure(events, lambda part: np.zeros((len(events.target[part]), len(events.candidates))))
    # all candidates tie: the rank is the number of those left, 12 at first, 1 at last
    assert quality.recall == pytest.approx(10 / 12)


def test_a_model_that_answers_nan_ranks_last() -> None:
    events = build_test(TRAIN, [*TEST, *(("v", row) for row in range(ITEMS))], ITEMS)
    quality = measure(events, by_text(events, np.full((ITEMS, 4), np.nan, dtype=np.float32)))
    assert quality.ndcg == pytest.approx(0.0)
    assert quality.recall == 0.0


def test_one_vector_that_is_nan_ranks_last_for_itself() -> None:
    train, test = [("u", 0)], [("u", row) for row in range(1, 15)]
    events = build_test(train, test[:1], 15)
    broken = np.abs(vectors(0))[:15]
    broken[1] = np.nan
    scores = by_text(build_test(train, [*test[:1], *(("w", r) for r in range(15))], 15), broken)
    assert np.isnan(scores(slice(0, 1))).any()
    assert len(events) == 1
    whole = build_test([("u", 0), *(("w", r) for r in range(15))], test[:1], 15)
    assert measure(whole, by_text(whole, broken)).recall == 0.0


def test_popularity_ranks_by_training_clicks() -> None:
    train = [("a", 0), *(("b", row) for row in (1, 1, 1)), ("c", 2), ("c", 2)]
    events = build_test(train, [("a", 1), ("a", 2)], ITEMS)
    assert measure(events, by_popularity(events)).ndcg == pytest.approx(1.0)  # first 1, then 2


def test_random_scores_follow_the_seed_alone() -> None:
    events = build_test(TRAIN, TEST, ITEMS)
    one, again, other = (at_random(events, seed)(slice(0, 5)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_events_of_strangers_and_repeats_are_not_counted() -> None:
    events = build_test([("u", 0)], [("new", 1), ("u", 0), ("u", 2), ("new", 3), ("u", 2)], ITEMS)
    assert len(events) == 2  # u clicks 2; new has a history by the time of 3
    assert events.candidates[events.target].tolist() == [2, 3]


def test_nothing_to_test_is_refused() -> None:
    with pytest.raises(EmptyData, match="no test event of a user with a history"):
        build_test([("u", 0)], [("v", 1)], ITEMS)


def test_the_interval_holds_the_mean_and_users_stay_together() -> None:
    rng = rng_for("bootstrap-test")
    user = np.repeat(np.arange(40), 25)
    values = np.repeat((rng.random(40) < 0.5).astype(float), 25)  # all of a user's events agree
    low, high = bootstrap(values, user, 0)
    assert low <= values.mean() <= high
    alone_low, alone_high = bootstrap(values, np.arange(len(values)), 0)
    assert high - low > 3 * (alone_high - alone_low)  # 25 equal events say little more than one
    assert bootstrap(values, user, 0) == (low, high)


def test_every_report_has_its_controls() -> None:
    events = build_test(TRAIN, TEST, ITEMS)
    assert set(control_rows(events, vectors(0), 0)) == {"random", "popularity", "zero_shot"}
