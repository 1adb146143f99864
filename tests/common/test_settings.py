"""How an action counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.events import ACTIONS, Action, Interaction
from common.settings import ACTION_TABLE, NEGATIVE_RATING, POSITIVE_RATING, feedback_of, is_positive


def rated(stars: float) -> Interaction:
    """Return a rating of that many stars."""
    return Interaction("e", "u", "i", "rating", 0, stars)


def test_every_action_has_a_meaning_and_no_other_has() -> None:
    assert set(ACTION_TABLE) == set(ACTIONS)


@pytest.mark.parametrize(("stars", "sign"), [(5.0, 1), (4.0, 1), (3.5, 0), (3.0, 0), (2.5, 0), (2.0, -1), (0.5, -1)])
def test_stars(stars: float, sign: int) -> None:
    assert feedback_of(rated(stars)).sign == sign
    assert is_positive(rated(stars)) is (sign > 0)


@given(st.floats(0, 5), st.floats(0, 5))
def test_more_stars_never_count_less(few: float, many: float) -> None:
    few, many = min(few, many), max(few, many)
    assert feedback_of(rated(few)).sign <= feedback_of(rated(many)).sign


@given(st.sampled_from(ACTIONS), st.floats(-10, 10))
def test_a_weight_is_never_negative_and_nothing_weighs_nothing(action: Action, value: float) -> None:
    feedback = feedback_of(Interaction("e", "u", "i", action, 0, value))
    assert feedback.sign in (-1, 0, 1)
    assert feedback.weight >= 0
    assert (feedback.weight == 0) == (feedback.sign == 0)


def test_a_rating_that_is_no_number_says_nothing() -> None:
    assert feedback_of(rated(float("nan"))).sign == 0


def test_liked_and_disliked_do_not_overlap() -> None:
    assert NEGATIVE_RATING < POSITIVE_RATING


@pytest.mark.parametrize(
    ("action", "positive"),
    [("view", True), ("click", True), ("cart", True), ("purchase", True), ("skip", False), ("impression", False)],
)
def test_other_actions_do_not_look_at_the_value(action: Action, positive: bool) -> None:
    for value in (0.0, 1.0, 5.0):
        assert is_positive(Interaction("e", "u", "i", action, 0, value)) is positive
