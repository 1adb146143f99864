"""Laws of every learner found in `stream.learner`."""

import importlib
import inspect
import pkgutil
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from river.checks import check_estimator

import stream.learner
from common.errors import CheckpointMismatch, InvalidSetting, MalformedEvent
from common.events import MAX_ID_LENGTH
from common.snapshots import arrays_of
from common.store import pack_arrays, unpack_arrays
from stream.learner.base import ArrayRanker
from stream.learner.blend import Blend
from stream.learner.mf import MF
from stream.learner.parts import PartRanker
from stream.learner.pointwise import PointwiseMF

Event = tuple[str, str, float]


BASES = (ArrayRanker, PartRanker)
FOR_ALL_ALIKE = {"Popularity", "DecayedPopularity", "Content", "PointwiseMF"}
"""They cannot tell users apart: two by design, one as long as nothing describes the items, one as long as all is liked
alike (`tests/stream/test_pointwise.py` shows it different values)."""
WITH_USER_ROWS = {"PointwiseMF"}
"""A user is a row that was learned, so a history given with the question is folded into another one."""


def _learners() -> list[type[ArrayRanker]]:
    found: dict[str, type[ArrayRanker]] = {}
    for module in pkgutil.iter_modules(stream.learner.__path__):
        members = inspect.getmembers(importlib.import_module(f"stream.learner.{module.name}"), inspect.isclass)
        found |= {name: kind for name, kind in members if issubclass(kind, ArrayRanker) and kind not in BASES}
    return [kind for _, kind in sorted(found.items())]


LEARNERS = _learners()
WITH_ALL_ON: dict[str, "Make"] = {
    "MF with all on": partial(MF, n_factors=32, replay=6, replay_rate=1.0, text_dimensions=4, drift_boost=2.0),
    "Blend with all on": partial(Blend, replay=6, replay_rate=1.0, repeats=True, drift_boost=2.0),
}
EVERY: dict[str, "Make"] = {**{kind.__name__: kind for kind in LEARNERS}, **WITH_ALL_ON}
every_learner = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
Make = Callable[..., ArrayRanker]

_events = st.lists(
    st.tuples(
        st.sampled_from([f"user {n}" for n in range(5)]),
        st.sampled_from([f"item {n}" for n in range(12)]),
        st.sampled_from([1.0, 0.5, 3.0, -1.0, 0.0]),
    ),
    max_size=60,
)


def some_events(count: int, seed: int = 0) -> list[Event]:
    rng = np.random.default_rng(seed)
    return [
        (f"user {rng.integers(20)}", f"item {rng.integers(40)}", float(rng.choice([1.0, 1.0, 2.0, -1.0])))
        for _ in range(count)
    ]


def learned(make: Make, events: list[Event], **settings: Any) -> ArrayRanker:
    learner = make(**settings)
    for user, item, y in events:
        learner.learn_one(user, item, y)
    return learner


def test_the_learners_are_found() -> None:
    assert {"Blend", "Content", "DecayedPopularity", "MF", "Neighbours", "PointwiseMF", "Popularity"} <= {
        kind.__name__ for kind in LEARNERS
    }


@every_learner
def test_river_accepts_it(make: Make) -> None:
    check_estimator(make())


@every_learner
def test_reading_changes_nothing(make: Make) -> None:
    learner = learned(make, some_events(200))
    before, known = learner.state_sha256(), (learner.n_users, learner.n_items)
    for turn in range(2_500):
        user, item = f"user {turn % 40}", f"item {turn % 80}"
        learner.predict_one(user, item)
        learner.rank(user, [item, "never seen", "item 1"])
        learner.top_k(user, 5, exclude_seen=bool(turn % 2))
        learner.seen_rows(user)
    assert learner.state_sha256() == before
    assert (learner.n_users, learner.n_items) == known


@every_learner
def test_the_time_of_a_question_changes_no_state_and_matters_only_where_times_were_learned(make: Make) -> None:
    learner = learned(make, some_events(200))
    before = learner.state_sha256()
    for user in ("user 1", "user 7", "stranger"):
        assert np.array_equal(learner.scores(user, at=10**12), learner.scores(user))
        assert learner.top_k(user, 5, at=10**12) == learner.top_k(user, 5)
        assert learner.rank_of(user, 3, 5, at=10**12)[0] == learner.rank_of(user, 3, 5)[0]
    assert learner.state_sha256() == before


@every_learner
def test_a_history_given_with_the_question_counts_as_the_users_own(make: Make) -> None:
    learner = learned(make, some_events(200))
    before, with_rows = learner.state_sha256(), type(learner).__name__ in WITH_USER_ROWS
    for user in (f"user {n}" for n in range(0, 20, 3)):
        history = [learner.item_ids[row] for row in learner.history_rows(user)]
        if getattr(learner, "repeats", False):  # habit needs to know when, which a history does not say
            assert np.isfinite(learner.scores("stranger", history)).all()
            continue
        own = learner.scores(user)
        expected = learner.scores("another", history) if with_rows else own
        assert not np.array_equal(expected, learner.scores("stranger")) or type(learner).__name__ in FOR_ALL_ALIKE
        assert np.array_equal(learner.scores("stranger", ["never seen", *history]), expected)
        assert np.array_equal(learner.scores("user 1", history), expected)
        if not with_rows and len(history) == len(set(history)) == len(learner.seen_rows(user)):
            assert learner.top_k("stranger", 5, history=history) == learner.top_k(user, 5)
        assert learner.top_k(user, 5, history=["item 1"]) == learner.top_k(user, 5)
        assert np.array_equal(learner.scores(user), own)
    assert learner.top_k("stranger", 5, history=[]) == learner.top_k("stranger", 5)
    assert learner.state_sha256() == before
    with pytest.raises(InvalidSetting, match="7 is int"):
        learner.top_k("stranger", 5, history=[7])  # type: ignore[list-item]  # the wrong type is the point


@every_learner
def test_reads_do_not_change_what_is_learned_later(make: Make) -> None:
    read, unread = learned(make, some_events(50)), learned(make, some_events(50))
    read.predict_one("ghost", "ghost item")
    read.top_k("ghost", 3, history=["item 1", "item 2", "item 1"])
    for user, item, y in some_events(50, seed=1):
        read.learn_one(user, item, y)
        read.rank(user, {"ghost item", item})
        unread.learn_one(user, item, y)
    assert read.state_sha256() == unread.state_sha256()


@every_learner
def test_a_new_row_depends_on_seed_and_id_only(make: Make) -> None:
    forth, back = make(seed=3), make(seed=3)
    ids = [f"item {n}" for n in range(30)]
    forth.add_items(ids)
    back.add_items(ids[::-1])
    fresh = {item: make(seed=3).predict_one("nobody", item) for item in ids}
    for item in ids:
        assert forth.predict_one("nobody", item) == back.predict_one("nobody", item) == fresh[item]
    rows = {name: array for name, array in forth.state_arrays().items() if name.startswith("item.") and array.ndim == 2}
    for name, array in rows.items():
        assert np.array_equal(array, back.state_arrays()[name][::-1]), name


@every_learner
def test_an_unknown_item_scores_as_it_would_once_added(make: Make) -> None:
    learner = learned(make, some_events(100))
    before = learner.predict_one("user 1", "brand new")
    learner.add_items(["brand new"])
    assert learner.predict_one("user 1", "brand new") == before


@every_learner
@given(events=_events)
def test_learning_many_is_learning_one_by_one(make: Make, events: list[Event]) -> None:
    one, many = learned(make, events), make()
    half = len(events) // 2
    for part in (events[:half], events[half:]):
        many.learn_many([e[0] for e in part], [e[1] for e in part], [e[2] for e in part])
    assert one.state_sha256() == many.state_sha256()


@every_learner
@given(events=_events, order=st.integers(0, 2**32 - 1))
def test_a_users_own_state_is_the_same_however_partitions_interleave(
    make: Make, events: list[Event], order: int
) -> None:
    """Kafka keeps the order within a partition only, and a user has one partition.

    A user's own state is what was liked lately, in order, and what was ever seen: it comes from the user's events
    alone. Rows of items are not the same, since a step depends on the rows that it finds; neither are the factors of
    users in `PointwiseMF`, which are moved by those of items and start the same only.
    """
    waiting: dict[int, list[Event]] = {}
    for event in events:
        waiting.setdefault(int(event[0][-1]) % 3, []).append(event)
    rng, mingled = np.random.default_rng(order), list[Event]()
    while waiting:
        part = int(rng.choice(list(waiting)))
        mingled.append(waiting[part].pop(0))
        if not waiting[part]:
            del waiting[part]
    one, other = learned(make, events), learned(make, mingled)
    assert set(one.user_ids) == set(other.user_ids)
    for user in one.user_ids:
        for rows in ("history_rows", "seen_rows"):
            ids = [[kept.item_ids[row] for row in getattr(kept, rows)(user)] for kept in (one, other)]
            assert ids[0] == ids[1]
        counts = [kept.state_arrays()["user.positives"][kept.user_row(user)] for kept in (one, other)]
        assert counts[0] == counts[1]


@every_learner
@given(events=_events)
def test_what_was_given_away_stands_while_the_learner_learns_on(make: Make, events: list[Event]) -> None:
    learner = learned(make, events)
    views = learner.state_views()
    given = {f"state {name}": array for name, array in learner.state_arrays().items()}
    if isinstance(learner, MF | Blend | PointwiseMF):
        given |= {f"snapshot {name}": array for name, array in arrays_of(learner.snapshot({})).items()}
    before = {name: array.copy() for name, array in given.items()}
    assert views.keys() == learner.state_arrays().keys()
    for name, array in views.items():
        np.testing.assert_array_equal(array, given[f"state {name}"], err_msg=name)
    for user, item, y in [("user 1", "item 2", 1.0), ("user 0", "item 2", 2.0), ("user 0", "item 5", -1.0), *events]:
        learner.learn_one(user, item, y)
    for name, array in given.items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


@every_learner
@given(events=_events, k=st.integers(1, 15))
def test_the_top_is_the_head_of_the_ranking(make: Make, events: list[Event], k: int) -> None:
    learner = learned(make, events)
    for user in ("user 0", "user 1", "nobody"):
        whole = learner.rank(user, learner.item_ids)
        assert [item for item, _ in learner.top_k(user, k, exclude_seen=False)] == whole[:k]
        seen = {learner.item_ids[row] for row in learner.seen_rows(user)}
        best = learner.top_k(user, k)
        assert [item for item, _ in best] == [item for item in whole if item not in seen][:k]
        assert all(score == learner.predict_one(user, item) for item, score in best)
        among = learner.top_k(user, k, candidates=["item 3", "item 5", "no such item"])
        assert [i for i, _ in among] == [i for i in whole if i in {"item 3", "item 5"} - seen][:k]


@every_learner
@given(events=_events)
def test_the_rank_is_the_place_in_the_ranking_ties_against_it(make: Make, events: list[Event]) -> None:
    learner = learned(make, events)
    for row, item in enumerate(learner.item_ids):
        for user in ("user 0", "nobody"):
            seen = {int(r) for r in learner.seen_rows(user)}
            if row in seen:
                continue
            mine = learner.predict_one(user, item)
            others = [
                learner.predict_one(user, other)
                for place, other in enumerate(learner.item_ids)
                if place not in seen and place != row
            ]
            rank, best = learner.rank_of(user, row, 10)
            assert rank == 1 + sum(score >= mine for score in others)
            assert (row in best) == (1 + sum(score > mine for score in others) <= 10) or rank > 10


@every_learner
def test_a_restored_learner_is_the_same_and_goes_on_the_same(make: Make) -> None:
    original = learned(make, some_events(150), seed=5)
    raw = pack_arrays(original.state_arrays())
    restored = make(seed=5)
    restored.load_state(unpack_arrays(raw, "test"))
    assert restored.state_sha256() == original.state_sha256()
    assert pack_arrays(restored.state_arrays()) == raw
    for user, item, y in some_events(150, seed=9):
        original.learn_one(user, item, y)
        restored.learn_one(user, item, y)
    assert restored.state_sha256() == original.state_sha256()


@every_learner
def test_an_item_that_nobody_liked_costs_little_in_a_checkpoint(make: Make) -> None:
    learner = make()
    before = sum(array.nbytes for array in learner.state_arrays().values())
    learner.add_items([f"item {n}" for n in range(500)])
    after = sum(array.nbytes for array in learner.state_arrays().values())
    assert after - before < 500 * 1_024


@every_learner
def test_restoring_shares_no_memory(make: Make) -> None:
    arrays = learned(make, some_events(50)).state_arrays()
    kept = {name: array.copy() for name, array in arrays.items()}
    restored = make()
    restored.load_state(arrays)
    restored.learn_many(["user 1"] * 9, [f"item {n}" for n in range(9)])
    assert all(np.array_equal(arrays[name], kept[name]) for name in kept)


@every_learner
def test_another_learners_state_is_refused_whole(make: Make) -> None:
    learner = learned(make, some_events(20))
    before = learner.state_sha256()
    foreign = learned(make, some_events(20), seed=99).state_arrays()
    lacking = {name: array for name, array in learner.state_arrays().items() if name != "user.ring"}
    wrong_type = {**learner.state_arrays(), "item.counts": np.zeros(3, dtype=np.float32)}
    for arrays, named in ((foreign, "seed"), (lacking, "user.ring"), (wrong_type, "item.counts")):
        with pytest.raises(CheckpointMismatch, match=named):
            learner.load_state(arrays)
    assert learner.state_sha256() == before


@every_learner
def test_a_clone_knows_nothing(make: Make) -> None:
    learner = learned(make, some_events(50), seed=4)
    clone = learner.clone()
    assert clone.state_sha256() == make(seed=4).state_sha256()


@every_learner
def test_equal_seeds_learn_equally(make: Make) -> None:
    assert learned(make, some_events(300)).state_sha256() == learned(make, some_events(300)).state_sha256()


@every_learner
def test_memory_depends_on_ids_not_on_events(make: Make) -> None:
    events = some_events(3_000)
    learner = learned(make, events)
    tracemalloc.start()
    for user, item, y in events * 3:
        learner.learn_one(user, item, y)
    grown_by, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown_by < 50_000
    assert sum(array.nbytes for array in learner.state_arrays().values()) < 400_000


@every_learner
def test_time_running_backwards_changes_nothing(make: Make) -> None:
    plain, timed = make(), make()
    for place, (user, item, y) in enumerate(some_events(60)):
        plain.learn_one(user, item, y)
        timed.learn_one(user, item, y, x={"ts": -place})
    if getattr(timed, "repeats", False):  # habit minds times: it must only stay whole
        assert np.isfinite(timed.scores("user 1")).all()
        assert np.array_equal(timed.history_rows("user 1"), plain.history_rows("user 1"))
        return
    assert plain.state_sha256() == timed.state_sha256()


@every_learner
@pytest.mark.parametrize(
    ("user", "item", "y", "named"),
    [
        ("u", "i", float("nan"), "nan"),
        ("u", "i", float("inf"), "inf"),
        ("u", "i", "5", "'5'"),
        ("u", "i", None, "None"),
        (7, "i", 1.0, "7 is int"),
        ("u", ("i",), 1.0, "is tuple"),
        ("", "i", 1.0, "0 characters"),
        ("u", "i" * 1_000_000, 1.0, "1000000 characters"),
        ("u", "\ud800", 1.0, "surrogate"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_is_refused_and_changes_nothing(
    make: Make, user: Any, item: Any, y: Any, named: str
) -> None:
    learner = learned(make, some_events(20))
    before = learner.state_sha256()
    with pytest.raises(MalformedEvent, match=named):
        learner.learn_one(user, item, y)
    with pytest.raises(MalformedEvent, match=named):
        learner.learn_many(["user 1", user], ["item 1", item], [1.0, y])
    assert learner.state_sha256() == before


@every_learner
def test_an_id_too_long_to_learn_reads_as_unknown(make: Make) -> None:
    learner = learned(make, some_events(20))
    endless = "x" * 1_000_000
    assert np.isfinite(learner.predict_one(endless, endless))
    assert learner.top_k(endless, 3) == learner.top_k("nobody", 3)
    learner.learn_one("u" * MAX_ID_LENGTH, "i" * MAX_ID_LENGTH)


@every_learner
def test_wrong_types_are_named_when_reading(make: Make) -> None:
    learner = learned(make, some_events(20))
    for call in (
        lambda: learner.predict_one(7, "item 1"),  # type: ignore[arg-type]  # the wrong type is the point
        lambda: learner.predict_one("user 1", 7),  # type: ignore[arg-type]  # the wrong type is the point
        lambda: learner.rank("user 1", [7]),  # type: ignore[list-item]  # the wrong type is the point
        lambda: learner.top_k(7),  # type: ignore[arg-type]  # the wrong type is the point
    ):
        with pytest.raises(InvalidSetting, match="7 is int"):
            call()
    for k in (0, -1, 1.5, True):
        with pytest.raises(InvalidSetting, match=f"k {k}"):
            learner.top_k("user 1", k)  # type: ignore[arg-type]  # the wrong type is the point
    with pytest.raises(InvalidSetting, match="2 users, 1 items"):
        learner.learn_many(["a", "b"], ["i"])


@every_learner
def test_a_learner_that_knows_nothing_answers(make: Make) -> None:
    learner = make()
    assert learner.top_k("nobody", 10) == []
    assert learner.rank("nobody", ["b", "a"]) in (["a", "b"], ["b", "a"])
    assert learner.history_rows("nobody").tolist() == []
    assert np.isfinite(learner.predict_one("nobody", "nothing"))
    learner.learn_many([], [])
    assert learner.events == 0
    restored = make()
    restored.load_state(learner.state_arrays())
    assert restored.state_sha256() == learner.state_sha256()


@every_learner
def test_history_keeps_the_newest_and_seen_keeps_all(make: Make) -> None:
    learner = make(window=4)
    order = [0, 1, 2, 1, 3, 4, 1]
    for item in order:
        learner.learn_one("ann", f"item {item}")
    learner.learn_one("ann", "item 0", -1.0)
    ids = learner.item_ids
    assert [ids[row] for row in learner.history_rows("ann")] == [f"item {item}" for item in order[-4:]]
    assert {ids[row] for row in learner.seen_rows("ann")} == {f"item {item}" for item in order}
    assert len(learner.seen_rows("ann")) == 5


@every_learner
def test_all_users_lists_at_once_are_those_one_by_one(make: Make) -> None:
    for learner in (make(window=4), learned(make, some_events(300), window=4)):
        histories, seen = learner.all_users_items()
        assert len(histories[0]) == len(seen[0]) == learner.n_users + 1
        for place, user in enumerate(learner.user_ids):
            mine, known = (items[starts[place] : starts[place + 1]] for starts, items in (histories, seen))
            assert mine.tolist() == learner.history_rows(user).tolist()
            assert known.tolist() == sorted(learner.seen_rows(user).tolist())


@every_learner
def test_it_learns_the_board(make: Make) -> None:
    """Two groups that like different items; a learner that personalises must tell them apart."""
    learner = make(seed=1)
    rng = np.random.default_rng(0)
    for _ in range(1_500):
        side = str(rng.integers(2))
        learner.learn_one(f"{side} user {rng.integers(30)}", f"{side} item {rng.integers(10)}")
    personal = type(learner).__name__ not in FOR_ALL_ALIKE
    for side in "01":
        learner.learn_one(f"new {side}", f"{side} item 0")
        best = [item for item, _ in learner.top_k(f"new {side}", 5)]
        assert len(best) == 5
        assert not personal or all(item.startswith(side) for item in best)
