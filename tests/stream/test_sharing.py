"""Learners that share items: each event counts once, in whatever order and however often they hear of each other."""

from collections.abc import Callable

import numpy as np
import pytest

from common.errors import InvalidSetting
from common.settings import feedback_of
from stream.kafka_log import partition_of
from stream.learner.base import ArrayRanker
from stream.learner.blend import Blend
from stream.learner.mf import MF
from stream.learner.parts import Arrays
from stream.learner.pointwise import PointwiseMF
from stream.learner.popularity import Popularity
from stream.learner.sharing import Sharing
from tests.oracles.sharing import histories, ids_of, pairs_by_item, rows_by_item, sum_of_pairs, sum_of_parts
from tests.stream.topics import small_learner, some_events, some_texts

PARTS = 3
CATALOGUE = tuple(f"item-{number}" for number in range(30))
"""Ten more come with the events."""


def small_blend(**more: object) -> Blend:
    options: dict[str, object] = {"n_factors": 4, "negatives": 3, "window": 6, "places": 1024, "text_dimensions": 4}
    return Blend(**{**options, **more}, seed=3)  # type: ignore[arg-type]  # by name


MAKERS: dict[str, Callable[[], ArrayRanker]] = {
    "mf": lambda: small_learner("mf"),
    "blend": small_blend,
    "blend with repeats": lambda: small_blend(repeats=True, replay=3, drift_boost=2.0),
    "popularity": Popularity,
}


class Group:
    """Learners of one topic's partitions that hear of each other when told to."""

    def __init__(self, make: Callable[[], ArrayRanker], parts: int = PARTS) -> None:
        self.learners = [make() for _ in range(parts)]
        for learner in self.learners:
            learner.add_items(CATALOGUE)
        self.sharing = Sharing(make())
        self.owns: list[Arrays] = [learner.state_arrays() for learner in self.learners]
        self.before, self.taken = list(self.owns), [self.sharing.total(self.owns)] * parts
        self.share()

    def learn(self, first: int, last: int, *, dislikes: bool = True) -> None:
        for event in some_events(last)[first:]:
            feedback = feedback_of(event)
            if feedback.sign < 0 and not dislikes:
                continue
            learner = self.learners[partition_of(event.user_id, len(self.learners))]
            if feedback.sign:
                learner.learn_one(event.user_id, event.item_id, feedback.sign * feedback.weight, {"ts": event.ts})
            if feedback.sign <= 0 and isinstance(learner, Blend) and event.item_id in CATALOGUE:
                learner.try_one(event.user_id, event.item_id)

    def refresh(self, part: int) -> None:
        now = self.learners[part].state_arrays()
        self.owns[part] = self.sharing.own(self.before[part], self.taken[part], now)

    def share(self, *some: int) -> Arrays:
        """Let some, or all, store and take up what all have stored."""
        chosen = some or range(len(self.learners))
        for part in chosen:
            self.refresh(part)
        total = self.sharing.total(self.owns)
        for part in chosen:
            learner = self.learners[part]
            learner.load_state(self.sharing.together(total, [self.owns[part]], learner.events))
            self.before[part], self.taken[part] = self.owns[part], total
        return total


@pytest.mark.parametrize("kind", MAKERS)
def test_users_and_counts_are_those_of_one_learner(kind: str) -> None:
    group, alone = Group(MAKERS[kind]), Group(MAKERS[kind], parts=1)
    for number, (first, last) in enumerate([(0, 50), (50, 51), (51, 180), (180, 400)]):
        group.learn(first, last)
        alone.learn(first, last)
        group.share(number % PARTS)  # now one hears of the others, now another
    total, one = group.share(), alone.learners[0].state_arrays()
    assert rows_by_item(total, "item.counts") == rows_by_item(one, "item.counts")
    assert int(total["events"][0]) == alone.learners[0].events
    whole = group.sharing.together(total, group.owns)
    assert histories(whole) == histories(one)
    if "user.tried.ring" in whole:
        assert histories(whole, "user.tried.") == histories(one, "user.tried.")
        assert rows_by_item(total, "item.neighbours.counts") == rows_by_item(one, "item.neighbours.counts")
    for learner in group.learners:
        state = learner.state_arrays()
        assert {user: kept for user, kept in histories(state).items()}.items() <= histories(one).items()


@pytest.mark.parametrize("kind", ["mf", "blend", "blend with repeats"])
def test_the_total_is_the_sum_of_the_parts(kind: str) -> None:
    group = Group(MAKERS[kind])
    for first, last in ((0, 70), (70, 200), (200, 400)):
        group.learn(first, last)
        total = group.share()
    blank = MAKERS[kind]()
    blank.add_items(ids_of(total))
    start = blank.state_arrays()
    prefix = "item." if kind == "mf" else "item.factors."
    for name in ("history", "factors", "bias", "history_sum", "factors_sum", "bias_sum"):
        expected = sum_of_parts(group.owns, start, prefix + name)
        for item, row in rows_by_item(total, prefix + name).items():
            assert np.allclose(row, expected[item], atol=1e-5), (name, item)
    if kind != "mf":
        pairs, found = sum_of_pairs(group.owns), pairs_by_item(total)
        assert found.keys() == pairs.keys()
        assert all(np.isclose(weight, pairs[pair], atol=1e-4) for pair, weight in found.items())


@pytest.mark.parametrize("kind", ["blend", "blend with repeats"])
def test_pairs_are_those_of_one_learner(kind: str) -> None:
    """Who likes what depends on nobody else, so the sum over users does not either; but dislikes are cut off at 0."""
    group, alone = Group(MAKERS[kind]), Group(MAKERS[kind], parts=1)
    for first, last in ((0, 70), (70, 200)):
        for each in (group, alone):
            each.learn(first, last, dislikes=False)
        total = group.share()
    one, found = pairs_by_item(alone.learners[0].state_arrays()), pairs_by_item(total)
    assert found.keys() == one.keys()
    assert all(np.isclose(weight, one[pair], atol=1e-4) for pair, weight in found.items())


@pytest.mark.parametrize("kind", MAKERS)
def test_hearing_of_nothing_new_changes_nothing(kind: str) -> None:
    group = Group(MAKERS[kind])
    group.learn(0, 300)
    group.share()
    states = [learner.state_arrays() for learner in group.learners]
    owns = list(group.owns)
    for _ in range(3):
        group.share()
    for learner, state in zip(group.learners, states, strict=True):
        now = learner.state_arrays()
        for name, array in now.items():
            if "neighbours" not in name or "counts" in name:  # where in its row a pair lies means nothing
                assert np.allclose(array, state[name], rtol=1e-12, atol=0), name
        if "item.neighbours.filled" in now:
            assert pairs_by_item(now) == pairs_by_item(state)
    for own, before in zip(group.owns, owns, strict=True):
        for name in ("item.counts", "item.history", "item.factors.bias", "item.popularity.mass"):
            if name in own:
                rows = rows_by_item(own, name)
                assert all(np.array_equal(rows[item], row) for item, row in rows_by_item(before, name).items()), name


@pytest.mark.parametrize("kind", MAKERS)
def test_a_part_is_that_of_its_own_events_when_nobody_else_learns(kind: str) -> None:
    """A learner whose others learn nothing is one that is alone, bit for bit, however often it hears of them."""
    group, alone = Group(MAKERS[kind]), MAKERS[kind]()
    alone.add_items(CATALOGUE)
    events = [event for event in some_events(300) if partition_of(event.user_id, PARTS) == 0]
    for number, event in enumerate(events):
        feedback = feedback_of(event)
        for learner in (group.learners[0], alone):
            if feedback.sign:
                learner.learn_one(event.user_id, event.item_id, feedback.sign * feedback.weight, {"ts": event.ts})
        if number % 17 == 0:
            group.share()
    group.share()
    mine, its = group.learners[0].state_arrays(), alone.state_arrays()
    assert ids_of(mine) == ids_of(its)
    assert histories(mine) == histories(its)
    for name in its:
        if name.startswith(("item.", "fixed.")) and its[name].dtype.kind == "f":
            assert np.allclose(mine[name], its[name], atol=1e-4), name


def test_an_older_part_is_replaced_and_a_lost_one_falls_back() -> None:
    group = Group(MAKERS["mf"])
    group.learn(0, 100)
    group.share()
    stored = group.owns[1]
    group.learn(100, 200)
    group.share()
    newer = group.owns[1]
    back = group.sharing.total([group.owns[0], stored, group.owns[2]])
    again = group.sharing.total([group.owns[0], newer, group.owns[2]])
    assert int(back["events"][0]) < int(again["events"][0])
    for item, count in rows_by_item(again, "item.counts").items():
        gone = rows_by_item(newer, "item.counts").get(item, 0) - rows_by_item(stored, "item.counts").get(item, 0)
        assert rows_by_item(back, "item.counts")[item] == count - gone


def test_popularity_fades_with_the_events_of_all() -> None:
    """As far as they hear of each other: within a share, clicks of others do not make one's own older."""
    make: Callable[[], Blend] = lambda: small_blend(half_life=100.0)  # noqa: E731
    group, alone = Group(make), Group(make, parts=1)
    for first in range(0, 400, 10):
        for each in (group, alone):
            each.learn(first, first + 10, dislikes=False)
        total = group.share()
    one = alone.learners[0].state_arrays()
    expected = rows_by_item(one, "item.popularity.mass")
    for item, mass in rows_by_item(total, "item.popularity.mass").items():
        assert mass == pytest.approx(expected[item], rel=0.06)


def test_masses_as_of_different_events_are_added_up_as_of_one() -> None:
    make: Callable[[], Blend] = lambda: small_blend(half_life=0.01)  # noqa: E731 - `since` moves every third event
    group, alone = Group(make), make()
    alone.add_items(CATALOGUE)
    events = [event for event in some_events(200) if feedback_of(event).sign > 0]
    for event in events:
        for learner in (group.learners[0], alone):
            learner.learn_one(event.user_id, event.item_id, 1.0)
    group.share()
    assert int(group.owns[0]["fixed.popularity.since"][0]) > 0
    mine, its = (learner.snapshot({}).blend for learner in (group.learners[0], alone))
    assert mine is not None
    assert its is not None
    assert np.allclose(mine.popularity, its.popularity, atol=1e-6)


def test_newer_texts_carry_what_was_learned_about_texts_over() -> None:
    group = Group(MAKERS["blend"])
    for learner in group.learners:
        assert isinstance(learner, Blend)
        learner.describe(some_texts().ids, some_texts().vectors)
    group.share()
    group.learn(0, 300)
    group.share()
    turned = some_texts().vectors @ np.linalg.qr(np.random.default_rng(1).standard_normal((12, 12)))[0]
    learned = [own["fixed.factors.matrix"] - np.eye(4) for own in group.owns]
    for part, learner in enumerate(group.learners):
        before = learner.state_arrays()
        assert isinstance(learner, Blend)
        learner.describe(some_texts().ids, turned)
        group.owns[part] = group.sharing.retold(group.owns[part], before, learner.state_arrays())
        moved = group.owns[part]["fixed.factors.matrix"] - np.eye(4)
        # another basis of the same texts: the same taste, told otherwise
        assert np.linalg.norm(moved) == pytest.approx(np.linalg.norm(learned[part]), rel=0.02)
        assert np.linalg.norm(learned[part]) > 0.05


def test_the_taste_of_who_was_told_other_texts_is_left_out() -> None:
    group = Group(MAKERS["blend"])
    for number, learner in enumerate(group.learners):
        assert isinstance(learner, Blend)
        learner.describe(some_texts().ids, some_texts(seed=number // 2).vectors)
    group.learn(0, 300)
    for part in range(PARTS):
        group.owns[part] = group.learners[part].state_arrays()
    total = group.sharing.total(group.owns, group.owns[0])["fixed.factors.matrix"]
    alike = sum(own["fixed.factors.matrix"] - np.eye(4) for own in group.owns[:2])
    assert np.allclose(total, np.eye(4) + alike, atol=1e-5)


@pytest.mark.parametrize(
    "learner", [MF(ttl_days=3.0), MF(admit_at=2), MF(text_dimensions=4), PointwiseMF(), Blend(ttl_days=1.0)]
)
def test_what_cannot_be_added_up_is_refused(learner: ArrayRanker) -> None:
    with pytest.raises(InvalidSetting, match="can be shared"):
        Sharing(learner)
