"""Laws of feedback, for every learner: what people reject falls, what they give back too, and repeats are a switch."""

import numpy as np
import pytest

from common.events import Action, Interaction
from common.settings import ACTION_TABLE, Feedback, feedback_of
from stream.learner.base import ArrayRanker
from tests.contracts.test_rankers import EVERY, Make, every_learner

DEAF = {"Popularity", "Content"}
"""They learn nothing from a rejection: a control that counts likes, and a likeness of texts."""
REJECTIONS = [
    pytest.param("skip", 0.0, id="skip"),
    pytest.param("return", 0.0, id="return"),
    pytest.param("rating", 1.0, id="one star"),
]


def event(user: str, item: str, action: Action, value: float = 0.0) -> Interaction:
    return Interaction(event_id="e", user_id=user, item_id=item, action=action, ts=0, value=value)


def told(learner: ArrayRanker, user: str, item: str, action: Action, value: float = 0.0) -> Feedback:
    """Teach an event as the stream's worker does."""
    feedback = feedback_of(event(user, item, action, value))
    if feedback.sign:
        learner.learn_one(user, item, feedback.sign * feedback.weight)
    return feedback


def shopped(make: Make, seed: int = 0) -> ArrayRanker:
    """Return a learner of two groups of ten items and thirty users, each buying from the own group."""
    learner, rng = make(seed=seed), np.random.default_rng(seed)
    for _ in range(400):
        side = str(rng.integers(2))
        told(learner, f"{side} user {rng.integers(15)}", f"{side} item {rng.integers(10)}", "purchase")
    return learner


@every_learner
@pytest.mark.parametrize(("action", "value"), REJECTIONS)
def test_what_a_user_rejects_falls_for_that_user(make: Make, action: Action, value: float) -> None:
    learner = shopped(make)
    user = "0 user 3"
    seen = {learner.item_ids[row] for row in learner.seen_rows(user)}
    item = next(item for item in learner.item_ids if item.startswith("0") and item not in seen)
    before, others = learner.predict_one(user, item), learner.predict_one("1 user 1", "1 item 1")
    feedback = told(learner, user, item, action, value)
    assert feedback.sign < 0
    if type(learner).__name__ in DEAF:
        assert learner.predict_one(user, item) == before
        return
    assert learner.predict_one(user, item) < before
    assert learner.predict_one("1 user 1", "1 item 1") == pytest.approx(others, abs=0.3)


@every_learner
def test_a_return_takes_back_from_a_purchase(make: Make) -> None:
    learner = shopped(make)
    told(learner, "0 user 3", "0 item 5", "purchase")
    bought = learner.predict_one("0 user 3", "0 item 5")
    for _ in range(3):
        told(learner, "0 user 3", "0 item 5", "return")
    back = learner.predict_one("0 user 3", "0 item 5")
    assert back == bought if type(learner).__name__ in DEAF else back < bought
    # it was seen all the same
    assert learner.item_row("0 item 5") in learner.seen_rows("0 user 3")


@every_learner
def test_what_says_nothing_changes_nothing(make: Make) -> None:
    learner = shopped(make)
    before = learner.state_sha256()
    neutral: tuple[tuple[Action, float], ...] = (("impression", 0.0), ("rating", 3.0))
    for action, value in neutral:
        assert told(learner, "0 user 3", "0 item 5", action, value) == Feedback(0, 0.0)
    assert learner.state_sha256() == before


@every_learner
def test_rejections_alone_make_no_history(make: Make) -> None:
    learner = shopped(make)
    told(learner, "nobody yet", "0 item 5", "skip")
    assert learner.history_rows("nobody yet").tolist() == []
    assert learner.seen_rows("nobody yet").tolist() == []
    assert len(learner.top_k("nobody yet", 3)) == 3


@every_learner
def test_repeats_are_a_switch(make: Make) -> None:
    learner = shopped(make)
    user = "0 user 3"
    seen = {learner.item_ids[row] for row in learner.seen_rows(user)}
    masked = {item for item, _ in learner.top_k(user, learner.n_items)}
    allowed = {item for item, _ in learner.top_k(user, learner.n_items, exclude_seen=False)}
    assert masked == set(learner.item_ids) - seen
    assert allowed == set(learner.item_ids)
    row = learner.item_row(next(iter(seen)))
    assert row is not None
    rank, best = learner.rank_of(user, row, learner.n_items, exclude_seen=False)
    assert 1 <= rank <= learner.n_items
    assert row in best


def test_every_action_has_its_sign_and_weight() -> None:
    signs = {action: feedback.sign for action, feedback in ACTION_TABLE.items()}
    assert signs == {
        "view": 1, "click": 1, "cart": 1, "purchase": 1, "rating": 1, "skip": -1, "impression": 0, "return": -1
    }  # fmt: skip
    assert ACTION_TABLE["purchase"].weight > ACTION_TABLE["cart"].weight > ACTION_TABLE["click"].weight
    assert ACTION_TABLE["click"].weight > ACTION_TABLE["view"].weight > 0
    assert [feedback_of(event("u", "i", "rating", stars)).sign for stars in (1, 2, 3, 4, 5)] == [-1, -1, 0, 1, 1]


def test_the_deaf_are_learners() -> None:
    assert set(EVERY) >= DEAF
