"""Laws of bad input, for every learner: answers stay defined, learning goes on, and what is refused is named.

Events that cannot be learned (NaN, an endless id) are refused with `MalformedEvent` and change nothing, so that a
stream's worker sends them to its dead letters: `test_rankers.py` has that law.
"""

from typing import Any

import numpy as np
import pytest

from common.errors import AnabranchError
from common.events import MAX_ID_LENGTH
from stream.learner.base import ArrayRanker
from stream.learner.blend import Blend
from stream.learner.content import Content
from stream.learner.mf import MF
from tests.contracts.test_rankers import Make, every_learner, learned, some_events

ENDLESS = "x" * 1_000_000
STRANGE_IDS = ["nobody", ENDLESS, "", "\x00", "a\nb", "ü" * 300, "\U0001f375", "\ud800", " user 1 "]


def whole(learner: ArrayRanker, user: str) -> bool:
    """Tell whether the learner answers a user with finite numbers and each item once."""
    best = learner.top_k(user, 5)
    scores = [score for _, score in best]
    return (
        bool(np.isfinite(learner.scores(user)).all())
        and len({item for item, _ in best}) == len(best)
        and scores == sorted(scores, reverse=True)
    )


@every_learner
@pytest.mark.parametrize("unknown", STRANGE_IDS, ids=range(len(STRANGE_IDS)))
def test_unknown_ids_of_any_kind_are_answered(make: Make, unknown: str) -> None:
    learner = learned(make, some_events(60))
    before = learner.state_sha256()
    assert learner.top_k(unknown, 4) == learner.top_k("stranger", 4)
    assert np.isfinite(learner.predict_one(unknown, "item 1"))
    assert np.isfinite(learner.predict_one("user 1", unknown))
    assert learner.rank(unknown, [unknown, "item 1"]) in ([unknown, "item 1"], ["item 1", unknown])
    assert learner.top_k("user 1", 3, candidates=[unknown]) == []
    assert learner.top_k("stranger", 3, history=[unknown]) == learner.top_k("stranger", 3)
    assert learner.state_sha256() == before


@every_learner
def test_an_empty_history_is_that_of_a_stranger(make: Make) -> None:
    learner = learned(make, some_events(60))
    learner.learn_one("only rejects", "item 1", -1.0)
    stranger = learner.top_k("stranger", 5)
    assert learner.top_k("stranger", 5, history=[]) == stranger
    assert np.isfinite(learner.scores("only rejects")).all()
    assert whole(learner, "only rejects")
    assert learner.scores("user 1", []).shape == (learner.n_items,)


@every_learner
@pytest.mark.parametrize("ts", [float("nan"), float("inf"), -1, 2**80, "noon", None, [1], True, 1.5], ids=repr)
def test_a_time_that_is_none_is_no_reason_to_stop(make: Make, ts: Any) -> None:
    timed: dict[str, Any] = {"ttl_days": 2.0} if hasattr(make(), "ttl_days") else {}
    learner = learned(make, some_events(60), **timed)
    for user, item, y in some_events(20, seed=3):
        learner.learn_one(user, item, y, {"ts": ts})
    learner.learn_one("user 1", "item 1", 1.0, {})
    learner.learn_one("user 1", "item 1", 1.0, {"other": ts})
    assert whole(learner, "user 1")


@every_learner
def test_time_going_backwards_keeps_everything_whole(make: Make) -> None:
    learner = learned(make, some_events(60))
    for place, (user, item, y) in enumerate(some_events(200, seed=2)):
        learner.learn_one(user, item, y, {"ts": 10**12 - place * 86_400_000})
        learner.learn_one(user, item, y, {"ts": 10**12 + (place % 3) * 10**10})
    assert whole(learner, "user 1")
    assert whole(learner, "stranger")


@every_learner
def test_values_at_the_edge_of_what_can_be_learned_leave_it_whole(make: Make) -> None:
    learner = learned(make, some_events(60))
    values: list[Any] = [
        5e-324,
        -5e-324,
        1e308,
        -1e308,
        0.0,
        -0.0,
        1e-45,
        3.4e38,
        np.float32(1e-30),
        np.int64(2**62),
        True,
    ]
    for place, value in enumerate(values * 3):
        learner.learn_one("user 1", f"item {place % 40}", value)
        learner.learn_one("u" * MAX_ID_LENGTH, "i" * MAX_ID_LENGTH, value)
    assert whole(learner, "user 1")
    assert whole(learner, "u" * MAX_ID_LENGTH)


@every_learner
def test_an_item_that_vanishes_is_not_shown_and_harms_nothing(make: Make) -> None:
    """Catalogues lose items; histories do not."""
    learner = learned(make, some_events(120))
    gone = learner.item_ids[int(learner.history_rows("user 1")[-1])]
    left = [item for item in learner.item_ids if item != gone]
    for user in ("user 1", "user 2", "stranger"):
        best = learner.top_k(user, 5, candidates=left, exclude_seen=False)
        assert gone not in {item for item, _ in best}
        assert len(best) == 5
    for user, item, y in some_events(60, seed=4):
        if item != gone:
            learner.learn_one(user, item, y)
    assert whole(learner, "user 1")


@pytest.mark.parametrize("make", [Blend, Content, lambda **given: MF(text_dimensions=4, **given)], ids=range(3))
def test_an_item_whose_text_vanishes_is_one_without_a_text(make: Make) -> None:
    learner = make()
    assert isinstance(learner, Blend | Content | MF)
    ids, vectors = [f"item {n}" for n in range(40)], np.random.default_rng(0).standard_normal((40, 8))
    learner.describe(ids, vectors)
    for user, item, y in some_events(100):
        learner.learn_one(user, item, y)
    learner.describe(ids[1:], vectors[1:])
    learner.learn_one("user 1", ids[0])
    assert whole(learner, "user 1")
    assert ids[0] in learner.item_ids
    assert np.isfinite(learner.predict_one("user 2", ids[0]))


@every_learner
def test_wrong_types_are_the_only_questions_refused_and_are_named(make: Make) -> None:
    learner = learned(make, some_events(30))
    before = learner.state_sha256()
    for wrong in (None, 7, b"user 1", ["user 1"], float("nan")):
        for ask in (
            lambda wrong=wrong: learner.top_k(wrong),
            lambda wrong=wrong: learner.predict_one(wrong, "item 1"),
            lambda wrong=wrong: learner.predict_one("user 1", wrong),
            lambda wrong=wrong: learner.top_k("stranger", history=[wrong]),
            lambda wrong=wrong: learner.top_k("user 1", candidates=[wrong]),
            lambda wrong=wrong: learner.learn_one(wrong, "item 1"),
            lambda wrong=wrong: learner.learn_one("user 1", wrong),
        ):
            with pytest.raises(AnabranchError) as refused:
                ask()
            assert repr(wrong) in str(refused.value)
            assert type(wrong).__name__ in str(refused.value)
    assert learner.state_sha256() == before
